"""Our kernels as functions of NumPy arrays, which are checked. All run on the CPU and on GPUs; `backend` is a name or a backend."""

from __future__ import annotations

import numpy as np

from .. import backends
from ..errors import ConfigError
from ..kernels.dropout import mask_offset
from ..kernels.rng import key
from .bundles import Made, checked, write_source
from .checks import fit, in_range


def chosen(backend):
    """A backend by its name, "auto", "cpu" or "cuda", in which case it multiplies float32; or the backend itself."""
    if not isinstance(backend, str):
        return backend
    return backends.get(backend, precision="fp32")


def _made(backend, wires, size):
    return Made(chosen(backend), wires, size["M"], size["N"], size["T"], size["B"])


def bundles_forward(x, block, delay, weight, targets=None, backend="auto") -> np.ndarray:
    """The current [T, B, N] that a projection makes of source values x [T, B, M] (docs/model.md, section 2); before them all was silent.

    block, delay [tiles, J], weight [tiles J, BS, BT]: see `wiring`. targets: N; None: tiles times BT. Raises ConfigError for what does not
    fit.
    """
    wires, (x,), size = checked("bundles_forward", block, delay, weight, targets=targets, x=(x, "float", "T B M"))
    made = _made(backend, wires, size)
    write_source(made.state, "x", 0, made.backend.asarray(x))
    current = made.backend.zeros((size["T"], size["B"], size["N"]))
    made.state.forward({"current": current}, 0, size["T"])
    return made.backend.to_numpy(current)


def bundles_backward(d, block, delay, weight, sources, backend="auto") -> np.ndarray:
    """The gradient [T, B, M] of `sources` source values from d [T, B, N], that of the current; after it there is none. Wiring and errors:
    as `bundles_forward`."""
    wires, (d,), size = checked("bundles_backward", block, delay, weight, sources, d=(d, "float", "T B N"))
    made = _made(backend, wires, size)
    made.state.set_current_grad("current", 0, size["T"], made.backend.asarray(d))
    gradient = made.backend.zeros((size["T"], size["B"], sources))
    made.state.source_grad({"x": gradient}, 0, size["T"], size["T"])
    return made.backend.to_numpy(gradient)


def bundles_weight_grad(x, d, block, delay, bundle=32, backend="auto") -> np.ndarray:
    """The gradient [tiles J, BS, BT] of the weights from x [T, B, M] and d [T, B, N]. bundle: BS and BT. Errors: as `bundles_forward`."""
    weight = np.zeros((np.size(block), bundle, bundle), np.float32)
    beside = {"x": (x, "float", "T B M"), "d": (d, "float", "T B N")}
    wires, (x, d), size = checked("bundles_weight_grad", block, delay, weight, **beside)
    made = _made(backend, wires, size)
    write_source(made.state, "x", 0, made.backend.asarray(x))
    made.state.set_current_grad("current", 0, size["T"], made.backend.asarray(d))
    made.state.accumulate_weight_grad(size["T"])
    return made.backend.to_numpy(made.projection.d_weight)


def decay(log_tau, backend="auto") -> np.ndarray:
    """exp(-1 / tau) per token [N] of time constants tau = exp(log_tau [N]) in tokens."""
    (log_tau,), _ = fit("decay", log_tau=(log_tau, "float", "N"))
    made = chosen(backend)
    decayed = made.zeros(log_tau.shape)
    made.decay_forward(decayed, made.asarray(log_tau))
    return made.to_numpy(decayed)


def working_memory(f_in, u_in, retain, backend="auto") -> np.ndarray:
    """The gated buffer m [T, B, M] from f_in, u_in [T, B, M] and retain [M], from 0 (docs/model.md, section 3)."""
    given = {"f_in": (f_in, "float", "T B M"), "u_in": (u_in, "float", "T B M"), "retain": (retain, "float", "M")}
    arrays, size = fit("working_memory", **given)
    made = chosen(backend)
    m = made.zeros((size["T"] + 1, size["B"], size["M"]))
    made.working_memory_forward(m, *map(made.asarray, arrays), made.no_axon, 0)
    return made.to_numpy(m[1:])


def memory(q_in, v, w_in, decay=6.0, write_bias=0.0, backend="auto") -> np.ndarray:
    """Outputs of the associative memory, [T, B, H W], from queries q_in and values v [T, B, H W] and write gates w_in [T, B, H], empty at
    first (docs/model.md, section 3). decay, write_bias: before the sigmoid, numbers or arrays [H]."""
    given = {"q_in": (q_in, "float", "T B HW"), "v": (v, "float", "T B HW"), "w_in": (w_in, "float", "T B H")}
    (q_in, v, w_in), size = fit("memory", **given)
    T, B, HW, H = (size[name] for name in ("T", "B", "HW", "H"))
    if H == 0 or HW % H:
        raise ConfigError(f"memory: q_in {list(q_in.shape)} does not divide into the {H} heads of w_in {list(w_in.shape)}")
    each = {"decay": np.full(H, decay) if np.ndim(decay) == 0 else decay}
    each["write_bias"] = np.full(H, write_bias) if np.ndim(write_bias) == 0 else write_bias
    (decay, write_bias), _ = fit("memory", {"H": H}, **{name: (value, "float", "H") for name, value in each.items()})
    made = chosen(backend)
    out, S, last = made.zeros((T, B, HW)), made.zeros((B, H, HW // H, HW // H)), made.zeros((B, HW))
    inputs = (made.asarray(array) for array in (q_in, v, w_in, write_bias, decay, np.ones(B, np.float32)))
    made.memory_forward(out, S, last, *inputs, made.no_axon, 0)
    return made.to_numpy(out)


def cross_entropy(logits, targets, backend="auto") -> tuple[np.ndarray, np.ndarray]:
    """(loss [R] in nats, its gradient [R, V]) of logits [R, V] and targets [R] int; a negative target has loss and gradient 0."""
    given = {"logits": (logits, "float", "R V"), "targets": (targets, "int", "R")}
    (logits, targets), size = fit("cross_entropy", **given)
    in_range("cross_entropy", "targets", targets.clip(0), 0, size["V"], "columns of logits")
    made = chosen(backend)
    loss, hit = made.zeros(size["R"]), made.zeros(size["R"], "uint8")
    rows, d_logits = (made.matrix(size["R"], -(-size["V"] // made.whole_rows) * made.whole_rows) for _ in range(2))
    bias = made.zeros(rows.shape[1])
    rows[:, : size["V"]] = made.asarray(logits)
    made.cross_entropy(loss, hit, d_logits, rows, bias, made.asarray(targets), made.asarray([1.0], "float32"), size["V"])
    return made.to_numpy(loss), made.to_numpy(d_logits)[:, : size["V"]]


def softmax(logits, backend="auto") -> np.ndarray:
    """The probabilities [R, V] of logits [R, V], as the gradient of `cross_entropy` has them."""
    (logits,), size = fit("softmax", logits=(logits, "float", "R V"))
    _, gradient = cross_entropy(logits, np.zeros(size["R"], np.int32), backend)
    gradient[:, 0] += 1
    return gradient


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, seed=0, backend="auto") -> np.ndarray:
    """One token per row of logits [B, V], int32 [B]. temperature 0: the largest; top_k 0 and top_p 1: all tokens."""
    (logits,), size = fit("sample", logits=(logits, "float", "B V"))
    if not (temperature >= 0 and top_k >= 0 and 0 < top_p <= 1):
        given = f"temperature {temperature}, top_k {top_k}, top_p {top_p}"
        raise ConfigError(f"sample: temperature and top_k must be at least 0, top_p above 0 and at most 1; given: {given}")
    made = chosen(backend)
    tokens, step = made.zeros(size["B"], "int32"), made.zeros(size["B"], "uint64")
    rows = made.matrix(size["B"], -(-size["V"] // made.whole_rows) * made.whole_rows)
    rows[:, : size["V"]] = made.asarray(logits)
    how = np.float32(temperature), top_k, np.float32(top_p), key(seed), step
    made.sample(tokens, rows, made.zeros(rows.shape[1]), *how, size["V"])
    return made.to_numpy(tokens)


def dropout(x, rate, seed=0, backend="auto") -> np.ndarray:
    """x [R, N] with a share `rate` of its values dropped, at least 0 and below 1, and the others scaled by 1 / (1 - rate)."""
    (x,), _ = fit("dropout", x=(x, "float", "R N"))
    if not 0 <= rate < 1:
        raise ConfigError(f"dropout: rate must be at least 0 and below 1, not {rate}")
    made = chosen(backend)
    array = made.asarray(x)
    made.dropout(array, np.float32(rate), made.asarray([key(seed)], "uint64"), mask_offset(0))
    return made.to_numpy(array)


def poisson(shape, rate, strength=1.0, seed=0, backend="auto") -> np.ndarray:
    """Random stimuli [T, B, N]: `strength` with probability `rate` per neuron and token, else 0."""
    if len(shape) != 3 or not 0 <= rate <= 1:
        raise ConfigError(f"poisson: shape must be (T, B, N) and rate from 0 to 1; given: {tuple(shape)}, {rate}")
    made = chosen(backend)
    current = made.zeros(tuple(shape))
    made.poisson(current, np.float32(rate), np.float32(strength), key(seed), made.zeros(1, "uint64"))
    return made.to_numpy(current)
