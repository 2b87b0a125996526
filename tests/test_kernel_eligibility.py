"""The operations of e-prop, on every backend: against differences of the float64 reference, and loops over synapses in float64."""

from functools import partial

import numpy as np
import pytest

import reference as ref
from gradients import gradient, single
from neurogen_numba.kernels.population import Axon, NeuronState, flat
from test_kernel_population import PARAMETERS, Case

MODES = [(True, True, True, True, 0.0), (False, True, False, False, 0.0)]  # smooth, with trace and gate, and without


class Later:
    """What later tokens ask of a population, as the adjoint of LIF-A hands it on: dL/dv of the next token, dL/da, dL/dy of the next."""

    def __init__(self, case, seed=3):
        self.case, self.names = case, "vay" if case.traced else "va"
        self.h = single(np.random.default_rng(seed).normal(0, 1, (len(self.names), case.B, case.N)))

    def to_state(self, h, v):
        """The gradient of the state v, a, y from h."""
        p = {name: values.astype(np.float64) for name, values in self.case.parameters.items()}
        factors = {"v": p["alpha"] - ref.psi(np.asarray(v, np.float64)), "a": 1.0, "y": p["gamma"]}
        return {name: factors[name] * h_k for name, h_k in zip(self.names, h, strict=True)}

    def asked(self, inputs, v_last, neuron):
        """The product of the state of one neuron after the last token with its gradient, which is constant: that at v_last."""
        state, to = self.case.reference(inputs)["state"], self.to_state(self.h, v_last)
        return sum(np.sum(to[name][:, neuron] * state[name][:, neuron]) for name in self.names)


def run(case, backend, later, traces):
    """(to_current, to_gate, transition, traces, gradients by name) of the operation."""
    there, (C, B, N), K = backend.asarray, case.c.shape, len(later.names)
    v, a, y, r = case.run(backend)[:4]
    none = backend.zeros((1, 1, 1))[:0]
    state = NeuronState((there(v), there(a)), there(y) if case.traced else none)
    to_current, to_gate = backend.zeros((K, C, B, N)), backend.zeros((K, C, B, N)) if case.gated else none[..., None]
    transition, traces, d = backend.zeros((K, K, B, N)), there(traces), case._parameters(there, case.no_grads())
    parameters, *scales, hypercolumn, _, graded, physics = case._rest(backend, slice(None))
    gate = there(case.gate) if case.gated else none
    rest = there(r), there(case.c), gate, parameters, *scales, hypercolumn, graded, physics
    backend.population_eligibility(to_current, to_gate, transition, traces, there(later.h), d, state, *rest)
    gradients = dict(zip(PARAMETERS, map(backend.to_numpy, flat(d)), strict=True))
    return (*map(backend.to_numpy, (to_current, to_gate, transition, traces)), gradients), v


@pytest.mark.parametrize("mode", MODES, ids=["traced and gated", "plain"])
@pytest.mark.parametrize("shape", [(3, 2, 3, 1), (2, 1, 5, 3)], ids=str)
def test_a_chunk_acts_on_later_tokens_as_differences_say(backend, shape, mode):
    case = Case(shape, mode)
    later, (_, B, N) = Later(case), case.c.shape
    K, P = len(later.names), len(PARAMETERS)
    (to_current, to_gate, transition, traces, _), v = run(case, backend, later, np.zeros((K, P, B, N), np.float32))
    inputs = case.inputs()
    found = {name: np.einsum("kbn,kbn->n", later.h, traces[:, p]) for p, name in enumerate(PARAMETERS)}
    found |= {"c": np.einsum("kbn,kcbn->cbn", later.h, to_current)}
    found |= {"gate": np.einsum("kbn,kcbn->cbn", later.h, to_gate)} if case.gated else {}
    before = later.to_state(np.einsum("kbn,lkbn->lbn", later.h, transition), v[0])
    for name in inputs:
        expected = np.zeros(np.shape(inputs[name]))
        for neuron in range(N):  # of the normalisation, only the term of its own current counts
            loss = partial(later.asked, v_last=v[-1], neuron=neuron)
            expected[..., neuron] = gradient(loss, inputs, name)[..., neuron]
        np.testing.assert_allclose((before | found)[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)


def test_traces_of_parameters_move_on_and_give_gradients(backend):
    case = Case((3, 5, 4, 2), (True, False, True, True, 0.0))
    later, rng = Later(case), np.random.default_rng(5)
    shape = len(later.names), len(PARAMETERS), case.B, case.N
    none, old = np.zeros(shape, np.float32), single(rng.normal(0, 1, shape))
    (*_, transition, direct, _), _ = run(case, backend, later, none)
    (*_, new, gradients), _ = run(case, backend, later, old)
    np.testing.assert_allclose(new, direct + np.einsum("lkbn,lpbn->kpbn", transition, old), rtol=1e-4, atol=1e-5)
    expected = np.einsum("kbn,kpbn->pn", later.h, old)
    for p, name in enumerate(PARAMETERS):
        np.testing.assert_allclose(gradients[name], expected[p], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("size, M, N, per_tile, K", [(16, 20, 37, 2, 3), (32, 64, 32, 3, 2), (64, 70, 64, 1, 1)])
def test_traces_of_synapses(backend, size, M, N, per_tile, K):
    """Against loops in float64: the gradient of what was before the chunk, and the traces after it."""
    C, B, history, first, rng = 5, 2, 4, 1, np.random.default_rng(size)
    tiles, blocks = -(-N // size), -(-M // size)
    bundles = tiles * per_tile
    block, delay = rng.integers(0, blocks, bundles), rng.integers(0, history + 1, bundles)
    x = np.where(rng.random((history + C, B, M)) < 0.3, single(rng.normal(0, 1, (history + C, B, M))), np.float32(0))
    to_current, transition, h = (single(rng.normal(0, 1, (*s, B, N))) for s in ((K, C), (K, K), (K,)))
    old, grad = np.zeros((K, B, bundles, size, size), np.float32), np.zeros((bundles, size, size), np.float32)
    for j in range(bundles):
        targets = min(size, N - j // per_tile * size)
        old[:, :, j, :, :targets] = rng.normal(0, 1, (K, B, size, targets))
    new, expected = ref.eligibility(old, x, history, block, delay, per_tile, to_current, transition, h)

    words, rows, there = -(-M // 64), history + first + C + (1 if backend.name == "cpu" else 0), backend.asarray
    start = history if backend.name == "cpu" else rows - 2  # the ring of a GPU wraps around
    ring, fired = np.zeros((words, rows, B, 64), np.float32), np.zeros((words, rows, B), np.uint64)
    for t in range(-history, C):
        values = np.zeros((B, words * 64), np.float32)
        values[:, :M] = x[history + t]
        row = (start + first + t) % rows
        ring[:, row] = values.reshape(B, words, 64).swapaxes(0, 1)
        bits = (ring[:, row] != 0).astype(np.uint64) << np.arange(64, dtype=np.uint64)
        fired[:, row] = np.bitwise_or.reduce(bits, axis=-1)
    axon = Axon(there(ring), there(np.array([start], np.int32)), there(fired), there(fired))
    traces, gradient_ = there(old.reshape(K, B, -1)), there(grad.reshape(-1))
    structure = (there(array.astype(np.int32)) for array in (block, delay))
    backend.eligibility(traces, gradient_, axon, first, *structure, per_tile, size, *map(there, (to_current, transition, h)))
    np.testing.assert_allclose(backend.to_numpy(traces).reshape(new.shape), new, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backend.to_numpy(gradient_).reshape(grad.shape), expected, rtol=1e-4, atol=1e-4)


def test_slots_act_on_later_tokens_as_differences_say(op):
    C, B, M, rng = 4, 2, 3, np.random.default_rng(1)
    shapes = {"f_in": (C, B, M), "u_in": (C, B, M), "retain": M, "m0": (B, M)}
    inputs = {name: single(rng.normal(0, 1.5, shape)) for name, shape in shapes.items()}
    h, old = single(rng.normal(0, 1, (2, B, M)))
    m = np.concatenate([inputs["m0"][None], single(ref.working_memory(**inputs))])
    to_retain, to_store, transition, traces, d_retain = (single(np.zeros(shape)) for shape in ((C, B, M), (C, B, M), (B, M), (B, M), M))
    traces[...] = old
    read = inputs["f_in"], inputs["u_in"], inputs["retain"]
    op("working_memory_eligibility", to_retain, to_store, transition, traces, d_retain, h, m, *read)
    found = {"f_in": h * to_retain, "u_in": h * to_store, "m0": h * transition, "retain": (h * (traces - transition * old)).sum(0)}
    for name in inputs:
        expected = gradient(lambda x: np.sum(h * ref.working_memory(**x)[-1]), inputs, name)
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(d_retain, (h * old).sum(0), rtol=1e-5)
