"""The reference is what everything else is held to; here it is held to numbers worked out by hand."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

import reference as ref
from neurogen_numba.config import Brain, Module

B = 2


def log_tau(factor):
    return np.log(-1 / np.log(factor))


# Projections in bundles, the last blocks and tiles of which are smaller, every readout, an embedding of another size than the Thalamus,
# graded events.
SPARSE = dataclasses.asdict(
    Brain(
        thalamus=Module(20, lateral=2),
        wernicke=Module(40, outputs=18, lateral=2),
        hippocampus=Module(17, lateral=3),
        pfc=Module(24, outputs=4, lateral=3),
        basal_ganglia=Module(16, outputs=3, lateral=1),
        broca=Module(21, outputs=5, lateral=2),
        embedding=6,
        vocabulary=11,
        fan_in=16,
        bundle=16,
        feedback=3,
        delays=3,
        late_delays=5,
        feedback_chunks=2,
        hypercolumn=4,
        memory_heads=2,
        memory_width=3,
        memory_fan_in=4,
        chunk=4,
    )
)
# Dense where it can be, no readout, no feedback, no lateral synapses, binary events.
DENSE = dataclasses.asdict(
    Brain(
        **{name: Module(neurons, lateral=0) for name, neurons in zip(ref.MODULES, (6, 8, 5, 7, 4, 6), strict=True)},
        embedding=6,
        vocabulary=9,
        fan_in=20,
        bundle=32,
        feedback=0,
        delays=2,
        hypercolumn=3,
        memory_heads=1,
        memory_width=4,
        memory_fan_in=20,
        events="binary",
        chunk=1,
    )
)
MODELS = pytest.mark.parametrize("config", [SPARSE, DENSE], ids=["sparse", "dense"])


def model(config, T, seed=1):
    rng = np.random.default_rng(seed)
    return *ref.random_model(config, rng), rng.integers(0, config["vocabulary"], (T, B))


def logits_of(config, params, structure, tokens, **options):
    return ref.model_forward(config, params, structure, tokens, **options)["logits"]


def first_difference(one, other):
    """The first token at which two arrays [T, ...] differ by more than rounding."""
    tokens = np.flatnonzero(np.abs(one - other).reshape(len(one), -1).max(axis=1) > 1e-12)
    assert len(tokens), "no difference at all"
    return tokens[0]


# Operations


def test_three_steps_of_a_neuron_worked_out_by_hand():
    # alpha 1/2, rho 3/4, gamma 1/4, beta 0.4; a current of sqrt(1/60) is normalised to 1/2, so the drive is
    # 0.5 * 2 * 1.5 + 0.1 = 1.6, then again 1.6, then -1.4; the second sequence has factors 1.2 and 1.5.
    params = dict(log_tau_v=log_tau(0.5), log_tau_a=log_tau(0.75), log_tau_y=log_tau(0.25), beta=0.4, gain=2, bias=0.1, input_scale=1.5)
    params = {name: np.array([value]) for name, value in params.items()}
    c = np.sqrt(1 / 60) * np.array([1, 1, -1])[:, None, None] * np.ones((1, 2, 1))
    state = {letter: np.zeros((2, 1)) for letter in "vay"}
    modulators = {"gain_scale": np.array([1, 1.2]), "beta_scale": np.array([1, 1.5])}
    graded = ref.population(c, params, state, smooth=False, graded=True, hypercolumn=1, **modulators)
    expected = {
        "v": [[1.6, 1.9], [1.3, 1.7], [-1.925, -2.1125]],
        "z": [[1, 1], [1, 1], [0, 0]],
        "a": [[0.25, 0.25], [0.4375, 0.4375], [0.328125, 0.328125]],
        "s": [[1.6, 1.9], [1.3, 1.7], [0, 0]],
        "y": [[1.2, 1.425], [1.275, 1.63125], [0.31875, 0.4078125]],
    }
    for letter, values in expected.items():
        np.testing.assert_allclose(graded[letter][:, :, 0], values, rtol=1e-12)
    for letter in "vay":
        np.testing.assert_array_equal(graded["state"][letter], graded[letter][-1])
    binary = ref.population(c, params, state, smooth=False, graded=False, hypercolumn=1)
    np.testing.assert_array_equal(binary["s"], binary["z"])
    np.testing.assert_allclose(binary["y"][:, 0, 0], [0.75, 0.9375, 0.234375])


def test_a_neuron_that_starts_above_threshold_is_reset_by_its_event():
    params = dict(log_tau_v=log_tau(0.5), log_tau_a=log_tau(0.5), beta=0, gain=1, bias=0, input_scale=1)
    params = {name: np.array([value]) for name, value in params.items()}
    state, silence = {"v": np.array([[2.0]]), "a": np.zeros((1, 1))}, np.zeros((1, 1, 1))
    step = ref.population(silence, params, state, smooth=False, graded=True, hypercolumn=1)
    assert step["v"].item() == pytest.approx(0.5 * 2 - 1)
    step = ref.population(silence, params, state, smooth=True, graded=True, hypercolumn=1)
    assert step["v"].item() == pytest.approx(0.5 * 2 - 0.5)
    assert "y" not in step


def test_the_slope_of_smooth_is_psi():
    v = np.linspace(-1.3, 3.3, 461) + 0.0005
    slope = (ref.event(v + 1e-6, smooth=True) - ref.event(v - 1e-6, smooth=True)) / 2e-6
    np.testing.assert_allclose(slope, ref.psi(v), atol=1e-8)
    np.testing.assert_allclose(ref.event(np.array([-5, 0, 0.5, 1, 1.5, 2, 9]), smooth=True), [0, 0, 0.0625, 0.25, 0.4375, 0.5, 0.5])
    np.testing.assert_array_equal(ref.event(np.array([0.9, 1, 1.1])), [0, 0, 1])


def test_normalise_divides_each_hypercolumn_and_the_shorter_last_one():
    c = np.array([3.0, 4.0, 1.0])
    pair = np.sqrt(12.5 + 0.05)
    np.testing.assert_allclose(ref.normalise(c, 2), [3 / pair, 4 / pair, 1 / np.sqrt(1.05)])


def test_gate_of_zero_is_open_by_half():
    c = np.array([2.0, -3.0, 1.0])
    np.testing.assert_allclose(ref.gate(c, np.array([0.0, np.log(3), -800])), [2, -4.5, 0], atol=1e-12)


def test_synapses_hear_the_past_at_their_own_delay():
    # Bundles of two sources and two targets, delays 1 and 2, history 3. Targets 0 and 1 hear sources 0 and 1 after 1 token; target 2,
    # alone in its tile, reads source 2, alone in its block, after 2 tokens.
    s = np.array([[1, 10, 100], [2, 20, 200], [3, 30, 300], [4, 40, 400], [5, 50, 500]], float)[:, None, :]
    wiring = {"block": [[0], [1]], "delay": [[1], [2]], "N": 3}
    weight = np.array([[[2, 3], [5, 7]], [[4, 0], [0, 0]]], float)
    current = ref.synapses(s, 3, weight=weight, **wiring)
    first, second = 2 * 3 + 5 * 30, 3 * 3 + 7 * 30
    np.testing.assert_array_equal(current[:, 0], [[first, second, 4 * 200], [2 * 4 + 5 * 40, 3 * 4 + 7 * 40, 4 * 300]])
    for other in ({"delay": [[1], [4]]}, {"block": [[0], [2]]}, {"N": 2}, {"N": 5}):
        with pytest.raises(ValueError, match="do not fit"):
            ref.synapses(s, 3, weight=weight, **wiring | other)
    for entry in ((1, 0, 1), (1, 1, 0)):  # to the target after the last one, and from such a source
        padded = weight.copy()
        padded[entry] = 1
        with pytest.raises(ValueError, match="bundle 0 of tile 1: its padding is not 0"):
            ref.synapses(s, 3, weight=padded, **wiring)


def test_a_tile_sums_up_its_bundles():
    s = np.array([[1, 10], [2, 20]], float)[:, None, :]
    current = ref.synapses(s, 1, [[0, 0, 1]], [[0, 1, 1]], np.array([[[2.0]], [[3.0]], [[5.0]]]), 1)
    np.testing.assert_array_equal(current[:, 0], [[2 * 2 + 3 * 1 + 5 * 10]])


def remember(keys, values, *, decay, write_scale=1.0, write=50.0):
    """The answers of the memory when each value [width] comes after its key [width] and the key is heard again.

    Each pair takes two tokens: the key, when nothing is written, and the value, when it is.
    """
    q = np.repeat(np.array(keys, float), 2, axis=0)[:, None]
    v, w_in = np.zeros_like(q), np.full((len(q), 1, 1), -1000.0)
    v[1::2, 0], w_in[1::2] = values, write
    width = q.shape[2]
    S0, key0 = np.zeros((1, 1, width, width)), np.zeros((1, width))
    out, S, _ = ref.delta_memory(q, v, w_in, np.zeros(1), np.array([decay]), S0, key0, np.array([write_scale]), 1)
    return out[1::2, 0], S[0, 0]


def test_memory_gives_back_the_last_value_stored_under_a_key():
    key, other = [90.0, -1.2784645427610738, 0], [0, 0, 90.0]  # the minimum of silu is at -1.278, where it is -0.278
    first, second, third = [1.0, -2.0, 2.0], [3.0, 0.0, 1.0], [0.5, 0.5, -4.0]
    out, S = remember([key, other, key], [first, second, third], decay=50)
    for answer, value in zip(out, (first, second, third), strict=True):  # the answer is the value at root mean square 1
        np.testing.assert_allclose(answer, np.array(value) / np.sqrt(np.mean(np.square(value))), atol=1e-4)
    unit = np.array([90, -0.2784645427610738, 0])
    unit /= np.linalg.norm(unit)
    np.testing.assert_allclose(S, np.outer(unit, third) + np.outer([0, 0, 1], second), atol=1e-4)


def test_memory_forgets_and_its_write_may_be_strengthened():
    key, value = [90.0, 0.0], [2.0, 0.0]
    _, S = remember([key], [value], decay=0, write=0)
    np.testing.assert_allclose(S, [[1, 0], [0, 0]], atol=1e-5)  # written with sigmoid(0) = 1/2
    _, S = remember([key], [value], decay=0, write=0, write_scale=1.5)
    np.testing.assert_allclose(S, [[1.5, 0], [0, 0]], atol=1e-5)
    _, S = remember([key, [0.0, 0.0]], [value, value], decay=0, write=0)
    np.testing.assert_allclose(S, [[0.25, 0], [0, 0]], atol=1e-5)  # a key of 0 writes nothing; decay 0 halves, at two tokens


def test_heads_do_not_hear_each_other():
    rng = np.random.default_rng(0)
    q, v = rng.normal(size=(2, 5, B, 6))
    key0 = rng.normal(size=(B, 6))
    w_in, write_bias, decay, scale = rng.normal(size=(5, B, 2)), rng.normal(size=2), rng.normal(size=2), rng.normal(size=B)
    S0 = rng.normal(size=(B, 2, 3, 3))
    out, S, _ = ref.delta_memory(q, v, w_in, write_bias, decay, S0, key0, scale, 2)
    last = slice(3, 6), slice(1, 2)
    alone, S_alone, _ = ref.delta_memory(
        q[..., last[0]], v[..., last[0]], w_in[..., last[1]], write_bias[1:], decay[1:], S0[:, 1:], key0[:, last[0]], scale, 1
    )
    np.testing.assert_allclose(out[..., 3:], alone)
    np.testing.assert_allclose(S[:, 1:], S_alone)


def test_working_memory_keeps_and_takes():
    f_in, u_in = np.array([0, 800, -800])[:, None, None], np.array([4.0, 7.0, 9.0])[:, None, None]
    m = ref.working_memory(f_in, u_in, np.array([np.log(3)]), np.array([[2.0]]))
    np.testing.assert_allclose(m.ravel(), [0.75 * 2 + 0.25 * 4, 2.5, 9])


def test_embedding_and_decoder():
    weight, tokens = np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1, 0]])
    np.testing.assert_array_equal(ref.embedding(tokens, weight), [[[3, 4], [1, 2]]])
    mask = np.array([[[0.0, 2.0], [1.0, 1.0]]])
    np.testing.assert_array_equal(ref.embedding(tokens, weight, projection=np.array([[1.0], [10.0]]), mask=mask), [[[80], [21]]])
    np.testing.assert_array_equal(ref.decoder([1.0, -1.0], np.array([[3.0, 1.0], [0.0, 2.0]]), [0.5, 0.0]), [4.5, -4])


def test_cross_entropy_counts_only_real_targets():
    logits = np.log([[[0.5, 0.25, 0.25]], [[0.1, 0.1, 0.8]], [[0.2, 0.2, 0.6]]]) + 1000
    nats, accuracy = ref.cross_entropy(logits, np.array([[0], [-1], [1]]))
    assert nats == pytest.approx((np.log(2) + np.log(5)) / 2)
    assert accuracy == 0.5
    assert ref.cross_entropy(logits, np.full((3, 1), -1)) == (0, 0)
    np.testing.assert_allclose(ref.softmax(logits)[0, 0], [0.5, 0.25, 0.25])


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.2, 0.3]) / 0.3),
        ({"temperature": 0}, [0, 1, 0, 0]),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_k": 9}, [0.1, 0.4, 0.2, 0.3]),
        ({"top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]),
        ({"top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"top_p": 0.01}, [0, 1, 0, 0]),
        ({"top_k": 2, "top_p": 0.55}, [0, 1, 0, 0]),  # of the two that are left, the first has 4/7 of the mass
    ],
)
def test_sample_distribution(settings, expected):
    logits = np.log([0.1, 0.4, 0.2, 0.3]) + 3
    np.testing.assert_allclose(ref.sample_distribution(logits, **settings), expected, atol=1e-12)


def test_adamw_steps_by_hand():
    settings = dict(lr=0.1, beta1=0.9, beta2=0.99, eps=0.0, decay=0.5)
    p, m, v = ref.adamw(2.0, 4.0, 0.0, 0.0, step=1, **settings)
    assert (p, m, v) == pytest.approx((2 - 0.1 * (1 + 0.5 * 2), 0.4, 0.16))
    p, m, v = ref.adamw(p, -4.0, m, v, step=2, **settings)  # m = -0.04, and 1 - 0.9^2 = 0.19; v = 0.3184, and 1 - 0.99^2 = 0.0199
    assert p == pytest.approx(1.8 - 0.1 * (-0.04 / 0.19 / 4 + 0.5 * 1.8))


def test_muon_steps_by_hand():
    g, m = np.array([[3.0, 0.0], [0.0, -4.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
    settings = dict(lr=0.1, momentum=0.5, decay=0.5, rms=1 / np.sqrt(2), eps=0.0)
    p, m = ref.muon(np.eye(2), g, m, steps=[(1, 0, 0)], **settings)  # m = (2, -1.5), x = (2.5, -2.75) of norm 3.717
    np.testing.assert_allclose(m, [[2, 0], [0, -1.5]])
    np.testing.assert_allclose(np.diag(p), [1 - 0.1 * (2.5 / 3.7165 + 0.5), 1 - 0.1 * (-2.75 / 3.7165 + 0.5)], rtol=1e-5)
    p, _ = ref.muon(np.eye(2), np.ones((2, 2)), np.zeros((2, 2)), steps=[(1, 2, 0), (0, 0, 1)], **settings)  # s = (1, 0), 3, 3^5
    np.testing.assert_allclose(p, np.eye(2) - 0.1 * (243 * np.full((2, 2), 0.5) + 0.5 * np.eye(2)))


def test_finite_difference_leaves_the_parameters_alone():
    params = {"w": np.array([[1.0, 2.0], [3.0, 4.0]])}
    slope = ref.finite_difference(lambda p: float((p["w"] ** 3).sum()), params, "w", (1, 0))
    assert slope == pytest.approx(27)
    np.testing.assert_array_equal(params["w"], [[1, 2], [3, 4]])


# The six modules


def test_the_connectome_is_the_table_of_the_specification():
    text = (Path(__file__).parent.parent / "docs" / "model.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|$", text, flags=re.MULTILINE)
    delays = {
        "0": (0, 1),
        "0 … 3": (0, 4),
        "0 … D−1": (0, SPARSE["delays"]),
        "0 … K−1": (0, SPARSE["memory_context"]),
        "C … C+L−1": (SPARSE["chunk"], SPARSE["late_delays"]),
        "FC … FC+L−1": (SPARSE["feedback_chunks"] * SPARSE["chunk"], SPARSE["late_delays"]),
    }
    sources = {"PFC axon": "pfc", "Thalamus axon": "thalamus", "Wernicke axon": "wernicke", "Hippocampus axon": "hippocampus"}
    sources |= {"Wernicke out": "wernicke.out", "Hippocampus out": "hippocampus", "Basal ganglia out": "basal_ganglia.out"}
    sources |= {"memory `out`": "memory", "m": "working_memory", "its axon": "MODULE", "its trace y": "MODULE.y"}
    expected = {}
    for names, source, target, span, fan_in in table:
        for name in re.findall(r"`(\w+)`", names):
            for module in {"lateral_MODULE": ref.MODULES, "readout_MODULE": ("wernicke", "basal_ganglia", "broca")}.get(name, [""]):
                heard = name.split("_")[0] if source == "axon" else sources[source].replace("MODULE", module)
                synapses = SPARSE[module]["lateral"] if fan_in == "the module's `lateral`" else SPARSE[fan_in.strip("`")]
                expected[name.replace("MODULE", module)] = (heard, *delays[span], synapses, "inhibitory" in target)
    assert len(expected) > 30
    found = {p.name: (p.source, p.first_delay, p.delays, p.fan_in, p.inhibitory) for p in ref.projections(SPARSE)}
    assert found == expected


def test_projections_with_nothing_to_draw_do_not_exist():
    names = {p.name for p in ref.projections(DENSE)}
    assert not [name for name in names if name.startswith(("feedback", "lateral", "readout", "go_retain"))]
    assert ref.history_lengths(DENSE) == {"thalamus": max(DENSE["delays"], DENSE["memory_context"]) - 1, "wernicke": 3}
    assert ref.history_lengths(SPARSE)["basal_ganglia.out"] == SPARSE["feedback_chunks"] * SPARSE["chunk"] + SPARSE["late_delays"] - 1


@pytest.mark.parametrize(
    "bundle, fan_in, target, size",
    [
        *((16, 64, "pfc", 16), (32, 64, "pfc", 32), (64, 64, "pfc", 64), (64, 128, "pfc", 64), (64, 96, "pfc", 32), (64, 48, "pfc", 16)),
        *((64, 3, "pfc", 16), (32, 50, "pfc", 16), (64, 96, "memory.query", 16), (64, 96, "memory.write", 16)),
    ],
)
def test_a_bundle_is_as_large_as_divides_the_fan_in(bundle, fan_in, target, size):
    projection = ref.Projection("a", "thalamus", target, 0, 1, fan_in)
    assert ref.bundle_size({"bundle": bundle, "memory_bundle": 16}, projection) == size


@pytest.mark.parametrize(
    "fan_in, delays, M, N, expected",
    [
        (64, 1, 200, 40, (3, 4, 13)),  # tiles, bundles of each, blocks
        (23, 1, 200, 16, (1, 1, 13)),
        (24, 1, 200, 17, (2, 2, 13)),
        (3, 1, 200, 16, (1, 1, 13)),
        (99, 2, 20, 16, (1, 4, 2)),  # all that there are
    ],
)
def test_the_fan_in_is_rounded_to_bundles(fan_in, delays, M, N, expected):
    assert ref.bundles_of({"bundle": 16, "memory_bundle": 16}, ref.Projection("a", "thalamus", "pfc", 0, delays, fan_in), M, N) == expected


def test_bundles_are_drawn_without_repetition():
    rng = np.random.default_rng(0)
    drawn = ref.draw_bundles(rng, tiles=50, K=6, blocks=5, first_delay=4, delays=3)
    assert drawn["block"].shape == drawn["delay"].shape == (50, 6)
    assert set(drawn["block"].ravel()) == set(range(5)) and set(drawn["delay"].ravel()) == {4, 5, 6}
    for block, delay in zip(drawn["block"], drawn["delay"], strict=True):
        assert len(set(zip(block, delay, strict=True))) == 6
    everything = ref.draw_bundles(rng, tiles=1, K=4, blocks=2, first_delay=0, delays=2)
    assert set(zip(everything["block"][0], everything["delay"][0], strict=True)) == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_what_leads_nowhere_has_no_weight():
    block = np.array([[0, 1], [1, 1]])  # of three sources and three targets, in twos
    weight = ref.draw_weights(np.random.default_rng(0), block, 2, 2, 3, 3)
    assert weight.shape == (4, 2, 2)
    np.testing.assert_array_equal(weight != 0, [[[1, 1], [1, 1]], [[1, 1], [0, 0]], [[1, 0], [0, 0]], [[1, 0], [0, 0]]])
    many = ref.draw_weights(np.random.default_rng(0), np.arange(16).reshape(1, 16), 16, 64, 256, 64)
    assert many.std() == pytest.approx(1 / 16, rel=0.05)  # 256 synapses each


def test_a_random_model_inhibits_where_it_must():
    params, structure, _ = model(SPARSE, T=1)
    for p in ref.projections(SPARSE):
        assert (params[f"{p.name}.weight"] <= 0).all() == p.inhibitory, p.name
    alpha = np.exp(-np.exp(-params["pfc.log_tau_v"]))
    np.testing.assert_allclose(structure["pfc.input_scale"] ** 2 + alpha**2, 1)


@MODELS
def test_the_first_token_in_the_thalamus(config):
    params, structure, tokens = model(config, T=1, seed=2)
    params["thalamus.gain"] *= 3  # loud enough to fire at once
    c = params["embedding.weight"][tokens[0, 0]] @ params.get("embedding_thalamus.weight", np.eye(config["embedding"]))
    columns = np.split(c, range(config["hypercolumn"], len(c), config["hypercolumn"]))
    x = np.concatenate([column / np.sqrt(np.mean(column**2) + 0.05) for column in columns])
    v = x * params["thalamus.gain"] * structure["thalamus.input_scale"] + params["thalamus.bias"]
    found = ref.model_forward(config, params, structure, tokens)["activity"]["thalamus"]
    np.testing.assert_allclose(found["v"][0, 0], v)
    np.testing.assert_allclose(found["s"][0, 0], np.where(v > 1, v if config["events"] == "graded" else 1, 0))
    assert found["s"][0, 0].any()


@MODELS
def test_every_module_fires(config):
    activity = ref.model_forward(config, *model(config, T=30))["activity"]
    for module in ref.MODULES:
        assert 0.03 < activity[module]["z"].mean() < 0.5, module


@MODELS
def test_every_parameter_matters(config):
    params, structure, tokens = model(config, T=18)
    before = logits_of(config, params, structure, tokens, smooth=True)
    for name, values in params.items():
        louder = np.where(values == 0, 0, values + 0.2)  # padding stays 0
        after = logits_of(config, {**params, name: louder}, structure, tokens, smooth=True)
        assert np.abs(after - before).max() > 1e-9, name


@MODELS
@pytest.mark.parametrize("smooth", [False, True], ids=["events", "smooth"])
def test_a_segment_in_pieces_is_the_segment(config, smooth):
    params, structure, tokens = model(config, T=26)
    rng = np.random.default_rng(5)
    start = {name: rng.normal(0, 0.5, values.shape) for name, values in ref.fresh_state(config, B).items()}
    whole = ref.model_forward(config, params, structure, tokens, start, smooth=smooth)
    state, pieces = start, []
    for first, last in ((0, 1), (1, 3), (3, 17), (17, 26)):  # shorter and longer than the history
        piece = ref.model_forward(config, params, structure, tokens[first:last], state, smooth=smooth)
        state = piece["state"]
        pieces.append(piece["logits"])
    np.testing.assert_allclose(np.concatenate(pieces), whole["logits"], atol=1e-12)
    assert state.keys() == whole["state"].keys() == start.keys()
    for name, values in whole["state"].items():
        np.testing.assert_allclose(state[name], values, atol=1e-12, err_msg=name)


@MODELS
def test_a_token_changes_only_what_comes_from_it_on_in_its_own_sequence(config):
    params, structure, tokens = model(config, T=16)
    other = tokens.copy()
    other[7, 1] = (other[7, 1] + 1) % config["vocabulary"]
    one, two = (ref.model_forward(config, params, structure, ids) for ids in (tokens, other))
    assert first_difference(one["activity"]["thalamus"]["v"], two["activity"]["thalamus"]["v"]) == 7
    assert first_difference(one["logits"], two["logits"]) >= 7
    np.testing.assert_array_equal(one["logits"][:, 0], two["logits"][:, 0])


@pytest.mark.parametrize("projection", [p for p in ref.projections(SPARSE) if p.first_delay], ids=lambda p: p.name)
def test_lateral_synapses_act_a_chunk_later_and_feedback_two(projection):
    params, structure, tokens = model(SPARSE, T=12)
    state, name = ref.fresh_state(SPARSE, B), projection.name
    state[ref.history_key(projection.source)][-1] = 1  # one volley, in the token before the segment
    state["working_memory.m"] += 1
    weight = -10 * np.abs(params[f"{name}.weight"])

    def reached(weight, delay):
        local = structure[name] | {"delay": np.full_like(structure[name]["delay"], delay)}
        found = ref.model_forward(SPARSE, {**params, f"{name}.weight": weight}, structure | {name: local}, tokens, state)["activity"]
        return found["working_memory"]["m"] if name == "go_retain" else found[projection.target]["v"]

    shortest = SPARSE["chunk"] if name.startswith("lateral") else 2 * SPARSE["chunk"]
    assert projection.first_delay == shortest
    for delay in (shortest, shortest + SPARSE["late_delays"] - 1):
        assert first_difference(reached(0 * weight, delay), reached(weight, delay)) == delay - 1


def test_masks_act_on_the_axon_but_not_on_the_trace():
    params, structure, tokens = model(SPARSE, T=6)
    plain = ref.model_forward(SPARSE, params, structure, tokens)
    silent = {"wernicke": np.zeros((6, B, 40)), "broca": np.zeros((6, B, 21))}
    masked = ref.model_forward(SPARSE, params, structure, tokens, masks=silent)
    for letter in "vsy":  # before its own lateral synapses reach back, Wernicke does not notice
        np.testing.assert_array_equal(masked["activity"]["wernicke"][letter][:4], plain["activity"]["wernicke"][letter][:4])
    np.testing.assert_array_equal(masked["activity"]["wernicke"]["out"][:4], plain["activity"]["wernicke"]["out"][:4])
    assert not masked["state"]["wernicke.history"][-6:].any()
    assert np.abs(masked["logits"] - plain["logits"]).max() > 1e-3  # Hippocampus, PFC and Broca hear the axon

    assert np.abs(plain["activity"]["broca"]["axon"][:4]).max() > 0
    unread = ref.model_forward(SPARSE, params, structure, tokens[:4], masks={"broca": np.zeros((4, B, 21))})
    np.testing.assert_array_equal(unread["logits"], plain["logits"][:4])
    blind = ref.model_forward(SPARSE, params, structure, tokens, masks={"decoder": np.zeros((6, B, 5))})
    np.testing.assert_array_equal(blind["logits"], np.broadcast_to(params["decoder.bias"], blind["logits"].shape))
    double = ref.model_forward(SPARSE, params, structure, tokens, masks={"embedding": np.full((6, B, 6), 2.0)})
    louder = {**params, "embedding.weight": 2 * params["embedding.weight"]}
    np.testing.assert_allclose(double["logits"], logits_of(SPARSE, louder, structure, tokens))


@pytest.mark.parametrize("name", ["dopamine", "norepinephrine", "serotonin"])
def test_neuromodulators_change_only_their_own_sequence(name):
    config = SPARSE | {"neuromodulation": True}
    params, structure, tokens = model(config, T=10)
    one = ref.model_forward(config, params, structure, tokens)
    two = ref.model_forward(config, params, structure, tokens, {name: np.array([0.0, 0.5])})
    np.testing.assert_array_equal(one["logits"][:, 0], two["logits"][:, 0])
    assert np.abs(one["logits"][:, 1] - two["logits"][:, 1]).max() > 1e-6
    np.testing.assert_array_equal(two["state"][name], [0, 0.5])


def test_levels_worked_out_by_hand():
    state = {name: np.zeros(1) for name in (*ref.LEVELS, *ref.FOLLOWED)}
    for nats in (1.0, np.nan, 3.0):
        state = ref.note(state, [nats], 3)
    assert {name: float(level[0]) for name, level in state.items()} == {
        **{"dopamine": 0, "norepinephrine": 2, "serotonin": -2, "expected": 2},
        **{"surprise": 0, "counted": 0, "tokens": 0, "changes": 1, "reward": 0},
    }
    state["reward"][0] = 0.5
    for nats in (4.0, 4.0, 4.0):
        state = ref.note(state, [nats], 3)
    assert [float(state[name][0]) for name in ("dopamine", "norepinephrine", "serotonin", "expected")] == [2 - 4 + 0.5, 4, -2.75, 3]


def test_the_loss_has_one_slope_per_parameter_in_smooth_mode():
    # Two step widths agree only where the loss is differentiable: the smooth mode hides no jump anywhere in the model.
    params, structure, tokens = model(SPARSE, T=20)

    def loss(changed):
        return ref.cross_entropy(logits_of(SPARSE, changed, structure, tokens[:-1], smooth=True), tokens[1:])[0]

    for name in ("embedding.weight", "wernicke.log_tau_v", "pfc.beta", "memory.decay", "feedback_wernicke.weight"):
        one, other = (ref.finite_difference(loss, params, name, params[name] != 0, eps) for eps in (1e-6, 1e-5))
        assert abs(one) > 1e-6, name
        assert one == pytest.approx(other, rel=1e-3), name


@pytest.mark.parametrize("change", [{"gate.weight": 0}, {"decoder.bias": None}])
def test_parameters_that_are_not_the_models_are_refused(change):
    params, structure, tokens = model(SPARSE, T=1)
    changed = {name: values for name, values in (params | change).items() if values is not None}
    with pytest.raises(ValueError, match="missing or unknown"):
        ref.model_forward(SPARSE, changed, structure, tokens)
