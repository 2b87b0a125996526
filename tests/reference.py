"""The whole model of docs/model.md once more: slow, obvious float64 NumPy, straight from the equations.

It imports nothing of the project, so that a mistake has to be made twice to go unseen. There are two layers: one small function per
operation, to hold a kernel against, and `model_forward`, the six modules over a segment. That one runs token by token and knows no
chunks: every equation is causal, so code that works in chunks must give the same. Forward only: gradients are checked against
`finite_difference` in the smooth test mode (section 1), where every operation here is differentiable.

Arrays are time-major, [T tokens, B sequences, N neurons]; times are in tokens. Section numbers are those of docs/model.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THRESHOLD = 1.0
MODULES = ("thalamus", "wernicke", "hippocampus", "pfc", "basal_ganglia", "broca")  # the order in which a token passes them


# Section 1: from current to event


def sigmoid(x):
    """1 / (1 + exp(-x)), written with tanh so that no x overflows."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64)))


def per_token(log_tau):
    """The factor exp(-1 / tau) by which something with time constant tau = exp(log_tau) tokens decays in one token."""
    return np.exp(-1 / np.exp(np.asarray(log_tau, np.float64)))


def event(v, smooth=False, kind="triangle", width=1.0):
    """1 where the membrane v (any shape) is above threshold, else 0; in smooth mode, the function whose slope is exactly `psi`."""
    u = (np.asarray(v, np.float64) - THRESHOLD) / width
    if not smooth:
        return np.where(u > 0, 1.0, 0.0)
    if kind == "fast_sigmoid":
        return width * np.where(u < 0, 0.5 / (1 + np.abs(u)), 1 - 0.5 / (1 + np.abs(u)))
    if kind == "arctan":
        return width * (np.pi / 4 + np.arctan(u) / 2)
    return width * np.where(u <= -1, 0.0, np.where(u >= 1, 0.5, 0.25 + 0.5 * (u - u * np.abs(u) / 2)))


def psi(v, kind="triangle", width=1.0):
    """Surrogate slope of the event, 1/2 at threshold: a triangle, zero from `width` away from threshold on; or one of two with tails."""
    u = np.abs(np.asarray(v, np.float64) - THRESHOLD) / width
    if kind == "fast_sigmoid":
        return 0.5 / (1 + u) ** 2
    if kind == "arctan":
        return 0.5 / (1 + u**2)
    return 0.5 * np.maximum(0, 1 - u)


def gate(c, g):
    """Broca's current c [T, B, N] under its gate current g [T, B, N]: a gate of 0 lets it through as it is, at most it doubles."""
    return c * 2 * sigmoid(g)


def normalise(c, hypercolumn, eps=0.05):
    """Divisive normalisation of the current c [..., N] by its root mean square over each `hypercolumn` consecutive neurons.

    Where N is not a multiple of `hypercolumn`, the last hypercolumn is smaller. Without hypercolumns (0), c itself.
    """
    if not hypercolumn:
        return np.asarray(c, np.float64)
    x = np.empty(np.shape(c), np.float64)
    for first in range(0, x.shape[-1], hypercolumn):
        column = np.asarray(c, np.float64)[..., first : first + hypercolumn]
        x[..., first : first + hypercolumn] = column / np.sqrt(np.mean(column**2, axis=-1, keepdims=True) + eps)
    return x


def population(c, params, state, *, smooth, graded, hypercolumn, gain_scale=None, beta_scale=None):
    """A population of LIF-A neurons hearing the current c [T, B, N], which in Broca has been through `gate`.

    params: log_tau_v, log_tau_a, beta, gain, bias, input_scale, each [N], and log_tau_y [N] where the output trace is read.
    state: v, a, and y where there is a trace, each [B, N], of the token before. gain_scale, beta_scale: factors [B]; None is neutral.
    Returns v, z, a, s, and y where there is a trace, each [T, B, N], and under "state" what follows the last token.
    """
    T, B, N = np.shape(c)
    gain_scale = np.ones(B) if gain_scale is None else np.asarray(gain_scale)
    beta_scale = np.ones(B) if beta_scale is None else np.asarray(beta_scale)
    traced = "log_tau_y" in params
    alpha, rho = per_token(params["log_tau_v"]), per_token(params["log_tau_a"])
    gamma = per_token(params["log_tau_y"]) if traced else None

    drive = normalise(c, hypercolumn) * params["gain"] * params["input_scale"] * gain_scale[:, None] + params["bias"]
    v, a, y = state["v"], state["a"], state["y"] if traced else None
    z = event(v, smooth)
    record = {name: np.empty((T, B, N)) for name in (("v", "z", "a", "s", "y") if traced else ("v", "z", "a", "s"))}
    for t in range(T):
        v = alpha * v - THRESHOLD * z + drive[t] - params["beta"] * beta_scale[:, None] * a
        z = event(v, smooth)
        a = rho * a + (1 - rho) * z
        s = z * v if graded else z
        record["v"][t], record["z"][t], record["a"][t], record["s"][t] = v, z, a, s
        if traced:
            y = gamma * y + (1 - gamma) * s
            record["y"][t] = y
    record["state"] = {"v": v, "a": a, "y": y} if traced else {"v": v, "a": a}
    return record


# Neurons other than the stock one, from their papers: a token of each, on arrays of any shape. k: constants; z: event of a potential.


def lif(state, i, k, z):
    (v,) = state
    return (k["alpha"] * v - z(v) + i,)


def lif_a(state, i, k, z):
    v, a = state
    new = k["alpha"] * v - z(v) + i - k["beta"] * a
    return new, k["rho"] * a + (1 - k["rho"]) * z(new)


def adlif(state, i, k, z):
    """SE-adLIF, Baronig et al. 2025, equations 13 to 17: v is their u before the reset; i is (1 - alpha) I."""
    v, w = state
    after_reset = v * (1 - z(v))
    new = k["alpha"] * after_reset - (1 - k["alpha"]) * w + i
    fired = z(new)
    return new, k["beta"] * w + (1 - k["beta"]) * (k["a"] * new * (1 - fired) + k["b"] * fired)


def resonate_and_fire(state, i, k, z):
    """x + iy is the oscillator, which turns and decays, and v = x - q its distance from the raised threshold (Higuchi et al. 2024)."""
    v, y, q_before = state
    x, q = v + q_before, 0.9 * q_before + z(v)
    pole = np.exp(1j * np.arcsin(k["omega"]) - k["damping"] - q)
    oscillator = (x + 1j * y) * pole
    return oscillator.real + i - q, oscillator.imag, q


def izhikevich(state, i, k, z):
    """Izhikevich 2003 in millivolts: V = 95 v - 65, U = 95 u - 13, a step of 1 ms by Euler's method; b around 0.2 of V + 65."""
    v, u = state
    V, U, fired = 95 * v - 65, 95 * u - 13, z(v)
    V, U = V + fired * (95 * k["c"] - 65 - V), U + fired * 95 * k["d"]
    a = 1 - k["rho"]
    V, U = V + 0.04 * V**2 + 5 * V + 140 - U + 95 * i, U + a * (k["b"] * (V + 65) - 13 - U)
    return (V + 65) / 95, (U + 13) / 95


NEURONS = {"lif": lif, "lif_a": lif_a, "adlif": adlif, "resonate_and_fire": resonate_and_fire, "izhikevich": izhikevich}


def neurons(name, c, parameters_of, state, *, event, graded, hypercolumn, gain_scale, factors):
    """Neurons under the current c [T, B, N]: s, y and v, [T, B, N]. own: their constants, gain, bias and gamma, [N]; state: name -> [B, N],
    with y last; event: of v; factors: constant -> what neuromodulators multiply it with, [B]."""
    drive = normalise(c, hypercolumn) * parameters_of["gain"] * gain_scale[:, None] + parameters_of["bias"]
    k = parameters_of | {name: parameters_of[name] * factor[:, None] for name, factor in factors.items()}
    *values, y = state.values()
    record = {"s": [], "y": [], "v": []}
    for i in drive:
        values = NEURONS[name](tuple(values), i, k, event)
        s = event(values[0]) * (values[0] if graded else 1)
        y = parameters_of["gamma"] * y + (1 - parameters_of["gamma"]) * s
        for what, row in (("s", s), ("y", y), ("v", values[0])):
            record[what].append(row)
    return {what: np.array(rows) for what, rows in record.items()}


# Section 2: synapses


def synapses(s_with_history, H, block, delay, weight, N):
    """The current [T, B, N] that delayed synapses in bundles make of a signal.

    s_with_history: [H + T, B, M], whose first H rows are the tokens before the segment, H at least the longest delay.
    block, delay: [tiles, K], of the K bundles of a tile; weight [tiles * K, BS, BT]: bundle (tile, k) leads from the BS sources from
    block * BS on to the BT targets from tile * BT on. Weights beyond the last source or the last target are padding, and are 0.
    Raises ValueError where H is too short, a block lies beyond the sources, there are fewer targets than tiles, or padding is not 0.
    """
    T, B, M = s_with_history.shape[0] - H, *s_with_history.shape[1:]
    (tiles, K), (bundles, BS, BT) = np.shape(delay), np.shape(weight)
    if np.max(delay) > H or np.max(block) * BS >= M or not (tiles - 1) * BT < N <= tiles * BT or bundles != tiles * K:
        raise ValueError(f"{tiles} tiles of {K} bundles [{BS}, {BT}], {M} sources, {N} targets, history {H}: these do not fit")
    current = np.zeros((T, B, N))
    for tile in range(tiles):
        for k in range(K):
            first, reach, w = block[tile][k] * BS, H - delay[tile][k], np.asarray(weight[tile * K + k], np.float64)
            heard = s_with_history[reach : reach + T, :, first : first + BS]  # [T, B, sources], fewer than BS in the last block
            sources, targets = heard.shape[2], min(BT, N - tile * BT)
            if w[sources:].any() or w[:, targets:].any():
                raise ValueError(f"bundle {k} of tile {tile}: its padding is not 0")
            current[:, :, tile * BT : tile * BT + targets] += heard @ w[:sources, :targets]
    return current


def eligibility(traces, s_with_history, H, block, delay, per_tile, to_current, transition, h):
    """(traces after a chunk, gradient of the weights [bundles, BS, BT]) of e-prop, one synapse at a time.

    traces [K, B, bundles, BS, BT]; s_with_history as in `synapses`; block, delay [bundles]. Of the targets: to_current [K, T, B, N],
    transition [K, K, B, N], h [K, B, N].
    """
    K, B, bundles, BS, BT = traces.shape
    (T, N), M = (to_current.shape[1], to_current.shape[3]), s_with_history.shape[2]
    new, gradient = np.zeros(traces.shape), np.zeros((bundles, BS, BT))
    for b, j, i, n in np.ndindex(B, bundles, BS, BT):
        source, target = block[j] * BS + i, j // per_tile * BT + n
        if target >= N:
            continue
        trace = traces[:, b, j, i, n].astype(np.float64)
        gradient[j, i, n] += h[:, b, target] @ trace
        new[:, b, j, i, n] = trace @ transition[:, :, b, target]
        if source < M:
            new[:, b, j, i, n] += to_current[:, :, b, target] @ s_with_history[H - delay[j] : H - delay[j] + T, b, source]
    return new, gradient


# Section 3: two memories


def delta_memory(q_in, v_in, w_in, write_bias, decay, S0, key0, write_scale, heads, erase=1.0):
    """Hippocampal associative memory under the gated delta rule (Yang et al. 2024, "Gated Delta Networks").

    q_in, v_in: [T, B, heads * width], head after head. w_in: [T, B, heads]. write_bias, decay: [heads]. write_scale: [B].
    S0: [B, heads, width, width], rows are keys and columns values. key0: [B, heads * width], the query of the token before.
    erase: 1, or 0 for the Hebbian rule. Returns out [T, B, heads * width], and S and the query after the last token.
    """
    T, B, size = np.shape(q_in)
    width = size // heads
    S, key = np.array(S0, np.float64), np.array(key0, np.float64)
    out = np.empty((T, B, size))

    def unit_silu(x):
        x = x * sigmoid(x)
        return x / np.sqrt(np.sum(x**2) + 1e-3 * x.size)

    for t in range(T):
        for b in range(B):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                q, k, v = unit_silu(q_in[t, b, part]), key[b, part].copy(), v_in[t, b, part]
                w = sigmoid(w_in[t, b, h] + write_bias[h]) * write_scale[b]
                D = sigmoid(decay[h]) * S[b, h]
                u = w * (v - erase * D.T @ k)
                S[b, h] = D + np.outer(k, u)
                o = S[b, h].T @ q
                out[t, b, part] = o / np.sqrt(np.mean(o**2) + 1e-4)
                key[b, part] = q
    return out, S, key


def working_memory(f_in, u_in, retain, m0):
    """The gated buffer in front of PFC. f_in, u_in: [T, B, M]; retain: [M]; m0: [B, M]. Returns m [T, B, M]."""
    m = np.empty(np.shape(f_in))
    before = m0
    for t in range(len(m)):
        f = sigmoid(f_in[t] + retain)
        before = m[t] = f * before + (1 - f) * u_in[t]
    return m


# Section 4: neuromodulators


LEVELS = ("dopamine", "norepinephrine", "serotonin")
FOLLOWED = ("expected", "surprise", "counted", "tokens", "changes", "reward")
FAST, SLOW = 16, 64  # intervals


def note(state, nats, interval):
    """The state, a dict with LEVELS and FOLLOWED [B], after a token whose loss is nats [B], NaN where it has none."""
    now = {name: np.array(state[name], np.float64) for name in (*LEVELS, *FOLLOWED)}
    for b in range(len(nats)):
        now["tokens"][b] += 1
        if not np.isnan(nats[b]):
            now["surprise"][b] += nats[b]
            now["counted"][b] += 1
        if now["tokens"][b] < interval or not now["counted"][b]:
            continue
        s, g, n = now["surprise"][b] / now["counted"][b], now["reward"][b], now["changes"][b] + 1
        now["dopamine"][b] = g + (now["expected"][b] - s if n > 1 else 0)
        now["norepinephrine"][b] = s
        now["serotonin"][b] += (g - s - now["serotonin"][b]) / min(n, SLOW)
        now["expected"][b] += (s - now["expected"][b]) / min(n, FAST)
        now["changes"][b] = n
        for name in ("surprise", "counted", "tokens", "reward"):
            now[name][b] = 0
    return now


def effects(sensitivity, levels):
    """{target: [B]}: the factors of each module's gain and adaptation, (module, "gain") and (module, "adaptation"), of "write", and what
    "go" opens the working memory by. sensitivity [14], levels [3, B]."""
    dopamine, norepinephrine, serotonin = levels
    found = {}
    for i, module in enumerate(MODULES):
        found[module, "gain"] = 2 * sigmoid(sensitivity[i] * norepinephrine)
        found[module, "adaptation"] = 2 * sigmoid(sensitivity[len(MODULES) + i] * serotonin)
    return found | {"write": 2 * sigmoid(sensitivity[12] * dopamine), "go": sensitivity[13] * dopamine}


# Section 4: token in, logits out


def weights_of_codes(stored, scale, numbers):
    """Weights [R, numbers] of codes: int8, or uint8 with two of 4 bits each, plus 8, the first in the lower half."""
    weights = np.zeros((len(stored), numbers))
    for row in range(len(stored)):
        for k in range(numbers):
            code = int(stored[row, k]) if stored.dtype == np.int8 else (int(stored[row, k // 2]) >> 4 * (k % 2)) % 16 - 8
            weights[row, k] = scale[row] * code
    return weights


def embedding(tokens, weight, projection=None, mask=None):
    """Input of the Thalamus for the tokens [T, B]: rows [T, B, E] of weight [V, E], times the mask [T, B, E] where one is given,
    through projection [E, N] where one is given."""
    rows = np.asarray(weight, np.float64)[tokens]
    rows = rows if mask is None else rows * mask
    return rows if projection is None else rows @ projection


def decoder(read, weight, bias):
    """Logits [..., V] of Broca's trace, or its readout, read [..., R]; weight: [V, R]; bias: [V]."""
    return (2 * np.asarray(read, np.float64)) @ np.transpose(weight) + bias


def softmax(logits):
    """Probabilities over the last axis."""
    logits = np.asarray(logits, np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return p / p.sum(axis=-1, keepdims=True)


def cross_entropy(logits, targets):
    """(Mean cross-entropy in nats, share where the largest logit is the target), over the targets >= 0; (0, 0) where there are none.

    logits: [..., V]; targets: [...] int. Of equal largest logits the first counts.
    """
    logits, targets = np.asarray(logits, np.float64), np.asarray(targets)
    counted = targets >= 0
    if not counted.any():
        return 0.0, 0.0
    logits, targets = logits[counted], targets[counted]
    largest = logits.max(axis=-1)
    log_sum = largest + np.log(np.exp(logits - largest[:, None]).sum(axis=-1))
    nats = log_sum - logits[np.arange(len(targets)), targets]
    return float(nats.mean()), float((logits.argmax(axis=-1) == targets).mean())


def sample_distribution(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The probabilities [V] that the next token is drawn with, from its logits [V].

    First the temperature (0: the largest logit takes all), then the top_k most probable (0: all), then of these, rescaled to 1, the
    smallest set of most probable ones whose mass is >= top_p, at least one (Holtzman et al. 2020, "The Curious Case of Neural Text
    Degeneration"). Of equal logits the lower index is the more probable.
    """
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    if temperature == 0:
        order = order[:1]
    if top_k > 0:
        order = order[:top_k]
    p = softmax(logits[order] / (temperature or 1.0))
    if top_p < 1:
        kept = 1
        while p[:kept].sum() < top_p and kept < len(p):
            kept += 1
        order, p = order[:kept], p[:kept]
    probabilities = np.zeros(len(logits))
    probabilities[order] = p / p.sum()
    return probabilities


# Learning


def adamw(p, g, m, v, step, lr, beta1, beta2, eps, decay):
    """One AdamW step (Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2), decay scaled by lr.

    p, g, m, v: parameter, gradient and its two moments, one shape; step counts from 1. Returns the new (p, m, v).
    """
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * p), m, v


def muon(p, g, m, lr, momentum, decay, rms, steps, eps):
    """One Muon step (Jordan et al. 2024) on a matrix [side, side], with Nesterov momentum; decay scaled by lr.

    steps: (a, b, c) of the polynomials a s + b s^3 + c s^5 of the singular values s, one after the other. Returns the new (p, m).
    """
    m = momentum * m + (1 - momentum) * g
    x = momentum * m + (1 - momentum) * g
    u, s, v = np.linalg.svd(x / (np.linalg.norm(x) + eps))
    for a, b, c in steps:
        s = a * s + b * s**3 + c * s**5
    return p - lr * (rms * np.sqrt(len(p)) * (u * s) @ v + decay * p), m


def finite_difference(f, params, name, index, eps=1e-6):
    """Central difference of the number f(params) as params[name][index] moves, all entries together where there are several.

    params itself stays as it is.
    """
    values = []
    for sign in (1, -1):
        moved = np.array(params[name], np.float64)
        moved[index] += sign * eps
        values.append(f({**params, name: moved}))
    return (values[0] - values[1]) / (2 * eps)


# Section 4: the connectome


class Projection(NamedTuple):
    """One row of the table in section 4. A signal is called `module` (its axon), `module.y`, `module.out`, memory or working_memory."""

    name: str
    source: str  # a signal
    target: str  # a module's current, or one of the other inputs named in `sizes`
    first_delay: int  # tokens
    delays: int  # how many different delays, from first_delay on
    fan_in: int
    inhibitory: bool = False


def bundle_size(config, p):
    """Neurons on a side of a projection's bundles: the largest of 16, 32 and 64 that divides the fan-in and is no larger than the brain's
    `bundle`, or `memory_bundle` into the associative memory; 16 where none does."""
    most = config["memory_bundle" if p.target.startswith("memory.") else "bundle"]
    return max([size for size in (16, 32, 64) if size <= most and p.fan_in % size == 0], default=16)


def bundles_of(config, p, M, N):
    """(tiles, K, blocks): K bundles are as near to the fan-in as bundles come (of two as near, the larger), at least one, at most all; and
    all where the fan-in is no smaller than that."""
    size = bundle_size(config, p)
    blocks, tiles = int(np.ceil(M / size)), int(np.ceil(N / size))
    if p.fan_in >= M * p.delays:
        return tiles, blocks * p.delays, blocks
    return tiles, min(max(1, int(np.floor(p.fan_in / size + 0.5))), blocks * p.delays), blocks


def has_readout(config, module):
    """Whether the module's output is a readout of its trace. PFC's `outputs` are the slots of the working memory instead."""
    return module != "pfc" and 0 < config[module]["outputs"] < config[module]["neurons"]


def has_trace(config, module):
    """Whether anything reads the module's output trace: the decoder always reads Broca's, a readout its module's."""
    return module == "broca" or has_readout(config, module)


def sizes(config):
    """How many values each signal and each input has."""
    memory = config["memory_heads"] * config["memory_width"]
    slots = config["pfc"]["outputs"] or config["pfc"]["neurons"]
    size = {"memory": memory, "memory.query": memory, "memory.value": memory, "memory.write": config["memory_heads"]}
    size |= {"working_memory": slots, "working_memory.retain": slots, "working_memory.store": slots}
    size["broca.gate"] = config["broca"]["neurons"]
    for module in MODULES:
        size[module] = size[f"{module}.y"] = config[module]["neurons"]
        if has_readout(config, module):
            size[f"{module}.out"] = config[module]["outputs"]
    return size


def projections(config):
    """The table of section 4 for one configuration, without the projections whose fan-in is 0."""
    fan_in, feedback, memory = config["fan_in"], config["feedback"], config["memory_fan_in"]
    now, near, far, late = (0, 1), (0, 4), (0, config["delays"]), (config["chunk"], config["late_delays"])  # first delay, number of delays
    back = (config["chunk"] * config["feedback_chunks"], config["late_delays"])
    out = {module: f"{module}.out" if has_readout(config, module) else module for module in MODULES}
    table = [
        Projection("feedback_thalamus", "pfc", "thalamus", *back, feedback, inhibitory=True),
        Projection("thalamus_wernicke", "thalamus", "wernicke", *far, fan_in),
        Projection("feedback_wernicke", "pfc", "wernicke", *back, feedback),
        Projection("memory_query", "thalamus", "memory.query", 0, config["memory_context"], memory),
        Projection("memory_value", "thalamus", "memory.value", *now, memory),
        Projection("memory_write", out["wernicke"], "memory.write", *now, memory),
        Projection("memory_hippocampus", "memory", "hippocampus", *now, fan_in),
        Projection("wernicke_hippocampus", "wernicke", "hippocampus", *near, fan_in),
        Projection("wernicke_retain", out["wernicke"], "working_memory.retain", *now, fan_in),
        Projection("wernicke_store", out["wernicke"], "working_memory.store", *now, fan_in),
        Projection("hippocampus_retain", out["hippocampus"], "working_memory.retain", *now, fan_in),
        Projection("hippocampus_store", out["hippocampus"], "working_memory.store", *now, fan_in),
        Projection("go_retain", out["basal_ganglia"], "working_memory.retain", *back, feedback, inhibitory=True),
        Projection("working_memory_pfc", "working_memory", "pfc", *now, fan_in),
        Projection("wernicke_pfc", "wernicke", "pfc", *near, fan_in),
        Projection("hippocampus_pfc", "hippocampus", "pfc", *now, fan_in),
        Projection("pfc_basal_ganglia", "pfc", "basal_ganglia", *now, fan_in),
        Projection("pfc_broca", "pfc", "broca", *now, fan_in),
        Projection("hippocampus_broca", "hippocampus", "broca", *now, fan_in),
        Projection("wernicke_broca", "wernicke", "broca", *near, fan_in),
        Projection("memory_broca", "memory", "broca", *now, fan_in),
        Projection("thalamus_broca", "thalamus", "broca", *far, fan_in),
        Projection("go_broca", out["basal_ganglia"], "broca.gate", *now, fan_in),
    ]
    for module in MODULES:
        table.append(Projection(f"lateral_{module}", module, module, *late, config[module]["lateral"]))
        if has_readout(config, module):
            table.append(Projection(f"readout_{module}", f"{module}.y", f"{module}.out", *now, fan_in))
    return [projection for projection in table if projection.fan_in > 0]


def history_lengths(config):
    """H for each delayed signal: the longest delay, in tokens, with which anything reads it."""
    lengths = {}
    for projection in projections(config):
        longest = projection.first_delay + projection.delays - 1
        lengths[projection.source] = max(longest, lengths.get(projection.source, 0))
    return {source: H for source, H in lengths.items() if H > 0}


def history_key(source):
    """The state's name for the past of a signal: wernicke.history, wernicke.out_history."""
    return f"{source}_history" if source.endswith(".out") else f"{source}.history"


def parameter_names(config):
    """Every parameter of the model."""
    names = [f"{projection.name}.weight" for projection in projections(config)]
    for module in MODULES:
        names += [f"{module}.{field}" for field in ("log_tau_v", "log_tau_a", "beta", "gain", "bias")]
        names += [f"{module}.log_tau_y"] if has_trace(config, module) else []
    names += ["embedding_thalamus.weight"] if config["embedding"] != config["thalamus"]["neurons"] else []
    names += [] if config["tied"] else ["embedding.weight"]
    names += ["neuromodulation.sensitivity"] if config["neuromodulation"] else []
    return names + [
        "memory.decay",
        "memory.write_bias",
        "working_memory.retain",
        "decoder.weight",
        "decoder.bias",
    ]


# The six modules


def modulators(config):
    """{name in the state: name in `note`}; empty where there are none."""
    return {name: name for name in LEVELS} | {f"neuromodulation.{name}": name for name in FOLLOWED} if config["neuromodulation"] else {}


def fresh_state(config, B):
    """The state of B sequences of which nothing has been read yet: every array is 0.

    MODULE.v, .a, and .y where its trace is read, [B, N]; MODULE.history and .out_history [H, B, M], the newest token last, for the
    signals that are read with delays; memory.S [B, heads, width, width]; memory.key [B, heads * width]; working_memory.m [B, M];
    neuromodulators and what they follow, [B], where there are any.
    """
    size = sizes(config)
    state = {name: np.zeros(B) for name in modulators(config)}
    for module in MODULES:
        for letter in ("v", "a", "y") if has_trace(config, module) else ("v", "a"):
            state[f"{module}.{letter}"] = np.zeros((B, size[module]))
    for source, H in history_lengths(config).items():
        state[history_key(source)] = np.zeros((H, B, size[source]))
    state["memory.key"] = np.zeros((B, size["memory"]))
    state["memory.S"] = np.zeros((B, config["memory_heads"], config["memory_width"], config["memory_width"]))
    state["working_memory.m"] = np.zeros((B, size["working_memory"]))
    return state


def model_forward(config, params, structure, tokens, state=None, *, smooth=False, masks=None, targets=None, levels=None):
    """The whole model over a segment of tokens [T, B].

    config: `dataclasses.asdict(Brain)`. params: an array under each of `parameter_names`.
    structure: MODULE.input_scale [N], and for each projection, under its name, a dict with block and delay, [tiles, K].
    state: see `fresh_state`; what is missing is 0. smooth: the smooth test mode.
    targets [T, B]: what comes after each token, below 0 where it is not told; neuromodulators follow its loss. levels [T, 3, B]: of the
    neuromodulators at each token, instead of those that follow the loss: constants to a gradient.
    masks: dropout factors, 0 or 1/(1 - p): "embedding" [T, B, E], MODULE (its axon) [T, B, N], "decoder" [T, B, R]; missing: no dropout.

    Returns logits [T, B, V]; state, after the last token; activity, {module: {v, z, a, s, axon, y, out}}, each [T, B, ...]: s before and
    axon after its mask, y where there is a trace, out where there is a readout; activity also has memory: {out} and
    working_memory: {m}; levels [T, 3, B]. Raises ValueError where the names in params, state or masks are not the model's.
    """
    tokens, masks, size = np.asarray(tokens), masks or {}, sizes(config)
    T, B = tokens.shape
    if set(params) != set(parameter_names(config)):
        raise ValueError(f"params: missing or unknown: {sorted(set(params) ^ set(parameter_names(config)))}")
    fresh = fresh_state(config, B)
    if unknown := set(state or {}) - set(fresh) | set(masks) - {"embedding", "decoder", *MODULES}:
        raise ValueError(f"state or masks: unknown: {sorted(unknown)}")
    state = {**fresh, **(state or {})}
    H = {source: 0 for source in size} | history_lengths(config)
    incoming = {target: [p for p in projections(config) if p.target == target] for target in size}

    # Every signal with its past in front. Future values are NaN, so that reading one shows.
    signals = {source: np.full((H[source] + T, B, size[source]), np.nan) for source in size}
    for source in history_lengths(config):
        past = np.asarray(state[history_key(source)])
        if past.shape != (H[source], B, size[source]):
            raise ValueError(f"state {history_key(source)!r}: {(H[source], B, size[source])} expected, not {past.shape}")
        signals[source][: H[source]] = past

    def current_of(target, t):
        """The current [1, B, N] that the projections bring to a target at token t."""
        current = np.zeros((1, B, size[target]))
        for p in incoming[target]:
            weight, signal = params[f"{p.name}.weight"], signals[p.source][t : H[p.source] + t + 1]
            current += synapses(signal, H[p.source], weight=weight, N=size[target], **structure[p.name])
        return current

    neurons = {}  # what population calls params, state and record
    S, key, m = state["memory.S"], state["memory.key"], state["working_memory.m"]
    for module in MODULES:
        fields = [name.split(".")[1] for name in params if name.startswith(f"{module}.")]
        parameters_of = {field: np.asarray(params[f"{module}.{field}"], np.float64) for field in fields}
        parameters_of["input_scale"] = np.asarray(structure[f"{module}.input_scale"], np.float64)
        start = {letter: np.asarray(state[f"{module}.{letter}"], np.float64) for letter in ("v", "a", "y") if f"{module}.{letter}" in state}
        record = {name: np.empty((T, B, size[module])) for name in ("v", "z", "a", "s", *(["y"] if has_trace(config, module) else []))}
        neurons[module] = {"params": parameters_of, "state": start, "record": record}
    tied = np.sqrt(3 * config["embedding"]) * np.asarray(params["decoder.weight"], np.float64) if config["tied"] else None
    rows = params["embedding.weight"] if tied is None else tied
    sensed = embedding(tokens, rows, params.get("embedding_thalamus.weight"), masks.get("embedding"))
    logits, sensitivity = np.empty((T, B, config["vocabulary"])), params.get("neuromodulation.sensitivity", np.zeros(14))
    followed = {known: state[name] for name, known in modulators(config).items()}
    acting = np.zeros((T, 3, B)) if levels is None else levels

    for t in range(T):
        if followed and levels is None:
            acting[t] = [followed[name] for name in LEVELS]
        effect = effects(sensitivity, acting[t])
        for module in MODULES:
            if module == "hippocampus":
                q, v, w = (current_of(f"memory.{name}", t) for name in ("query", "value", "write"))
                write_bias, decay = params["memory.write_bias"], params["memory.decay"]
                recalled, S, key = delta_memory(q, v, w, write_bias, decay, S, key, effect["write"], config["memory_heads"])
                signals["memory"][t] = recalled[0]
            if module == "pfc":
                f_in, u_in = current_of("working_memory.retain", t), current_of("working_memory.store", t)
                m = working_memory(f_in - effect["go"][:, None], u_in, params["working_memory.retain"], m)[0]
                signals["working_memory"][t] = m

            c = current_of(module, t)
            if module == "thalamus":
                c = c + sensed[t]
            if module == "broca":
                c = gate(c, current_of("broca.gate", t))
            parameters_of = neurons[module]
            step = population(
                c,
                parameters_of["params"],
                parameters_of["state"],
                smooth=smooth,
                graded=config["events"] == "graded",
                hypercolumn=config["hypercolumn"],
                gain_scale=effect[module, "gain"],
                beta_scale=effect[module, "adaptation"],
            )
            parameters_of["state"] = step["state"]
            for name, values in parameters_of["record"].items():
                values[t] = step[name][0]
            signals[module][H[module] + t] = step["s"][0] * masks[module][t] if module in masks else step["s"][0]
            if has_trace(config, module):
                signals[f"{module}.y"][t] = step["y"][0]
            if has_readout(config, module):
                signals[f"{module}.out"][H[f"{module}.out"] + t] = current_of(f"{module}.out", t)[0]

        read = signals["broca.out" if has_readout(config, "broca") else "broca.y"][t]  # no delay reads these: t is their row
        read = read * masks["decoder"][t] if "decoder" in masks else read
        logits[t] = decoder(read, params["decoder.weight"], params["decoder.bias"])
        if followed:
            known = np.full(B, -1) if targets is None else np.asarray(targets[t])
            nats = [cross_entropy(logits[t, b], known[b])[0] if known[b] >= 0 else np.nan for b in range(B)]
            followed = note(followed, nats, config["chunk"])

    after = {name: np.array(followed[known], np.float64) for name, known in modulators(config).items()}
    after |= {"memory.S": S, "memory.key": key, "working_memory.m": m}
    after |= {f"{module}.{letter}": values for module in MODULES for letter, values in neurons[module]["state"].items()}
    after |= {history_key(source): signals[source][T:].copy() for source in history_lengths(config)}
    activity = {"memory": {"out": signals["memory"]}, "working_memory": {"m": signals["working_memory"]}}
    for module in MODULES:
        activity[module] = {**neurons[module]["record"], "axon": signals[module][H[module] :]}
        if has_readout(config, module):
            activity[module]["out"] = signals[f"{module}.out"][H[f"{module}.out"] :]
    return {"logits": logits, "state": after, "activity": activity, "levels": acting}


# A model to try things on


def draw_bundles(rng, tiles, K, blocks, first_delay, delays):
    """Structure of a projection with a number of tiles, each of which reads K different (delay, block) pairs.

    Short delays are the likelier: probability ~ exp(-0.1 delay). Returns the dict that `model_forward` wants in its structure.
    """
    likely = np.repeat(np.exp(-0.1 * np.arange(delays)), blocks)
    pairs = np.array([rng.choice(delays * blocks, K, replace=False, p=likely / likely.sum()) for _ in range(tiles)])
    return {"block": pairs % blocks, "delay": first_delay + pairs // blocks}


def draw_weights(rng, block, BS, BT, M, N):
    """Weights [bundles, BS, BT] of variance 1 / synapses of a target; 0 where there is no source or no target."""
    tiles, K = block.shape
    source = block.reshape(-1, 1) * BS + np.arange(BS)
    target = np.repeat(np.arange(tiles), K)[:, None] * BT + np.arange(BT)
    weight = rng.normal(0, 1, (tiles * K, BS, BT)) * (source < M)[:, :, None] * (target < N)[:, None, :]
    synapses_of_a_target = (source < M).sum(axis=1).reshape(tiles, K).sum(axis=1)
    return weight / np.sqrt(np.repeat(synapses_of_a_target, K))[:, None, None]


def random_model(config, rng):
    """(params, structure) in float64, drawn as the model says, but livelier, and with nothing at a value, like bias 0, that hides it."""
    size, params, structure = sizes(config), {}, {}
    for p in projections(config):
        M, N = size[p.source], size[p.target]
        structure[p.name] = draw_bundles(rng, *bundles_of(config, p, M, N), p.first_delay, p.delays)
        weight = draw_weights(rng, structure[p.name]["block"], *[bundle_size(config, p)] * 2, M, N)
        params[f"{p.name}.weight"] = -np.abs(weight) if p.inhibitory else weight

    for module in MODULES:
        N = size[module]
        params[f"{module}.log_tau_v"] = rng.uniform(np.log(0.5), np.log(30 if module == "pfc" else 8), N)
        params[f"{module}.log_tau_a"] = rng.uniform(np.log(2), np.log(16), N)
        if has_trace(config, module):
            params[f"{module}.log_tau_y"] = rng.uniform(np.log(0.2), np.log(4), N)
        params[f"{module}.beta"] = rng.uniform(0, 0.5, N)
        params[f"{module}.gain"] = rng.uniform(1, 2, N)
        params[f"{module}.bias"] = rng.normal(0, 0.1, N)
        structure[f"{module}.input_scale"] = np.sqrt(1 - per_token(params[f"{module}.log_tau_v"]) ** 2)

    if config["neuromodulation"]:
        params["neuromodulation.sensitivity"] = rng.uniform(-0.3, 0.3, 14)
    V, E, heads = config["vocabulary"], config["embedding"], config["memory_heads"]
    if not config["tied"]:
        params["embedding.weight"] = rng.normal(0, 1, (V, E))
    if size["thalamus"] != E:
        params["embedding_thalamus.weight"] = rng.normal(0, E**-0.5, (E, size["thalamus"]))
    params["memory.decay"] = np.linspace(1, 4, heads)
    params["memory.write_bias"] = rng.normal(0, 0.5, heads)
    params["working_memory.retain"] = np.linspace(1, 5, size["working_memory"])
    R = size["broca.out"] if has_readout(config, "broca") else size["broca"]
    params["decoder.weight"] = rng.normal(0, (3 * R) ** -0.5, (V, R))
    params["decoder.bias"] = rng.normal(0, 0.1, V)
    return params, structure
