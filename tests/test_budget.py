"""The memory budget of a run: MetaBackend counts exactly what CudaBackend allocates."""

import gc
import itertools
import json
import math
import re
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from conftest import SIMULATED
from neurogen_numba import backends
from neurogen_numba.backends.cublas import WORKSPACE
from neurogen_numba.backends.cuda import OUTSIDE, CudaBackend
from neurogen_numba.brain.connectome import arcs
from neurogen_numba.brain.model import NeuroGenModel
from neurogen_numba.cli import main
from neurogen_numba.config import Module, size_of
from neurogen_numba.distributed.buckets import Buckets
from neurogen_numba.errors import BackendError, ConfigError
from neurogen_numba.learning.trainer import Trainer
from neurogen_numba.planning import budget
from neurogen_numba.planning.meta import MetaArray, MetaBackend
from neurogen_numba.planning.scaling import communication
from neurogen_numba.presets import PRESETS, get_preset
from neurogen_numba.train import configure
from neurogen_numba.train import parser as train_parser

CARD = budget.Card(2**30)
CUBLAS = 2 * WORKSPACE + OUTSIDE  # what the simulator does not allocate; products run on the main stream and on that of the Thalamus


class Small:
    """A card of 2 GiB, half of it free."""

    product_dtype, shared_memory, multiprocessors = "bfloat16", 2**16, 40

    def memory(self):
        return 2**30, 2**31

    def device_name(self):
        return "a small card"


def total(config, card=CARD):
    return sum(budget.plan(config, card).values())


@pytest.mark.gpu
@pytest.mark.skipif(not SIMULATED, reason="counts NumPy arrays")
def test_what_is_counted_on_paper_is_what_is_allocated(monkeypatch):
    alive, segment, batch = {}, 10, 1

    def counted(make):
        def made(self, *arguments, **how):
            array = make(self, *arguments, **how)
            alive[id(array)] = array.nbytes
            weakref.finalize(array, alive.pop, id(array))
            return array

        return made

    for name in ("zeros", "asarray"):
        monkeypatch.setattr(CudaBackend, name, counted(getattr(CudaBackend, name)))
    monkeypatch.setattr(CudaBackend, "launch", lambda *arguments, **how: None)  # what kernels compute takes no memory
    config = tiny.config(batch=batch, segment=segment, dropout=0.3, axon_dropout=0.3, brain={"vocabulary": 40})
    model = NeuroGenModel.from_config(config, backend=CudaBackend())
    act = model.activity(segment, batch, learning=True)
    ids = np.zeros((segment + 1, batch), np.int32)
    model.update(act, ids[:-1], ids[1:], 1e-3, reset=np.zeros(batch, bool))
    looks = [model.activity(config.brain.chunk, many) for many in (batch, 1)]
    for look in looks:
        model.brain.forward(look)
    gc.collect()
    backend = model.backend
    card = budget.Card(backend.logits * 1024, "float32", backend.shared_memory, backend.multiprocessors)
    assert total(config, card) - CUBLAS == pytest.approx(sum(alive.values()), rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_plan(name):
    config = get_preset(name)
    rows = budget.plan(config.replace(brain={"vocabulary": config.text.vocabulary}), CARD)
    parts = {"neurons", "synapses", "embedding", "decoder", "optimiser", "activity", "evaluation, samples", "workspace"}
    without = config.brain.tied and config.brain.embedding == config.brain.thalamus.neurons  # it is the decoder's, and needs no matrix
    assert set(rows) == parts - ({"embedding"} if without else set())
    assert all(size > 0 for size in rows.values())


def test_more_of_anything_takes_more():
    config = tiny.config()
    brains = {"brain": {"vocabulary": 60000}}, {"brain": {"fan_in": 40}}
    for change in ({"training": {"batch": 5}}, {"training": {"segment": 17}}, {"training": {"rewire_interval": 3}}, *brains):
        assert total(config.replace(**change)) > total(config)
    assert total(config, budget.Card(2**30, "float32")) != total(config)


def test_what_would_fit_fits_and_a_little_more_does_not():
    config = get_preset("shakespeare").replace(brain={"vocabulary": 65})
    limit = total(config) // 2
    changes = dict(change.words.rsplit(" ", 1) for change in budget.what_would_fit(config, CARD, limit) if "=" not in change.words)
    assert {"--batch-size", "--seq-length"} <= set(changes)
    for flag, field in (("--batch-size", "batch"), ("--seq-length", "segment")):
        value = int(changes[flag])
        assert total(config.replace(training={field: value})) <= limit
        assert total(config.replace(training={field: value + 2})) > limit


@pytest.mark.parametrize("preset, share, many", [("shakespeare", 0.97, 6), ("llm", 0.95, 7), ("llm", 0.8, 3), ("llm", 0.12, 1)])
def test_advice_can_be_followed_word_by_word(preset, share, many):
    config = get_preset(preset)
    limit = int(share * total(config))
    changes = list(budget.what_would_fit(config, CARD, limit)) or [budget.what_would_fit_together(config, CARD, limit)]
    assert len(changes) >= many
    for change in changes:
        followed = configure(train_parser().parse_args(["--preset", preset, *change.words.split()]))
        assert followed == change.config and total(followed) <= limit


def test_what_does_not_fit_is_refused_before_anything_is_allocated():
    config = get_preset("shakespeare").replace(brain={"vocabulary": 65})
    with pytest.raises(BackendError, match=r"needs .* GB, 1.07 GB are free; the largest part is activity, .*: .*--batch-size \d+, "):
        budget.settle(config, Small())
    smaller = config.replace(training={"batch": 8})
    assert budget.settle(smaller, Small()) == (smaller, None)
    with pytest.raises(BackendError, match="needs .* MB, 300.00 MB are free"):  # its own limit counts, too
        budget.settle(smaller.replace(training={"memory_limit": "300MB"}), Small())
    fitted, change = budget.settle(config, Small(), make_fit=True)
    assert change.startswith("made to fit into 1.07 GB: ")
    assert total(fitted, budget.Card(2**31, "bfloat16", 2**16, 40)) <= 2**30 < total(config, budget.Card(2**31, "bfloat16", 2**16, 40))


ALREADY_FRUGAL = {"batch": 1, "segment": 16, "optimizer": "adafactor", "activation_memory": "recompute"}


def kinds(config, limit):
    """What would fit, in its order, without the numbers."""
    return [re.sub("[ =][0-9]+$", "", change.words) for change in budget.what_would_fit(config, CARD, limit)]


def test_what_leaves_the_brain_as_it_is_gives_way_first():
    config = get_preset("llm")
    brain = [f"--set brain.{name}.neurons" for name in ("pfc", "wernicke", "broca")]
    little_memory = ["--activation-memory half", "--optimizer adamw8bit"]
    assert kinds(config, int(0.95 * total(config))) == [*little_memory, "--batch-size", "--seq-length", *brain]
    config = config.replace(training=ALREADY_FRUGAL)
    assert kinds(config, int(0.98 * total(config))) == brain


def test_muon_needs_one_moment_for_a_synapse():
    config = get_preset("llm").replace(brain={"vocabulary": 1000})
    muon = config.replace(training={"optimizer": "muon"})
    synapses = sum(math.prod(arc.weight_shape) for arc in arcs(config.brain))
    assert total(config) - total(muon) == pytest.approx(4 * synapses, rel=1e-3)
    assert total(config.replace(training={"optimizer": "adamw8bit"})) < total(muon)
    knob = next(knob for knob in budget.TRAINING if knob.flag == "--optimizer")
    assert [[*knob.less(each)] for each in (config, muon)] == 2 * [["adamw8bit", "adafactor"]]


def test_of_two_frugal_settings_the_milder_one_is_taken_that_suffices():
    config = get_preset("llm")
    single = {"adamw8bit": {"batch": 1, "optimizer": "adamw8bit"}, "adafactor": {"batch": 1, "optimizer": "adafactor"}}
    for name, training in single.items():
        limit = total(config.replace(training=training))
        fitted, output = budget.fit(config.replace(training={"batch": 1}), CARD, limit)
        assert fitted == config.replace(training=training) and output.endswith(f": --optimizer {name}")
    limit = total(config.replace(training={"activation_memory": "recompute"}))
    assert budget.fit(config, CARD, limit)[1].endswith(": --activation-memory recompute")


def test_of_the_modules_the_prefrontal_cortex_gives_way_first():
    config = get_preset("llm").replace(training=ALREADY_FRUGAL)
    limit = int(0.98 * total(config))
    fitted, output = budget.fit(config, CARD, limit)
    assert total(fitted) <= limit and config.brain.pfc.neurons / 4 <= fitted.brain.pfc.neurons < config.brain.pfc.neurons
    assert fitted == config.replace(brain={"pfc": fitted.brain.pfc})
    assert output.endswith(f"--set brain.pfc.neurons={fitted.brain.pfc.neurons}")
    assert budget.fit(fitted, CARD, limit)[0] == fitted


@pytest.mark.parametrize("preset, limit", [("llm", 12 * 10**9), ("llm", 3 * 10**9), ("wikitext", 10**9), ("gtx1650", 10**9)])
def test_what_is_advised_first_is_what_is_done(preset, limit):
    config = get_preset(preset)
    card = budget.Card.assumed(config, limit)
    output = budget.advice(config, card, limit)
    if output == budget.HOPELESS:
        with pytest.raises(BackendError, match="nor do all changes together that keep the brain"):
            budget.fit(config, card, limit)
    else:
        fitted, done = budget.fit(config, card, limit)
        assert total(fitted, card) <= limit and done.split(": ")[1] == output.split(": ")[1].split(", ")[0]


@pytest.mark.gpu
@pytest.mark.skipif(not SIMULATED, reason="pretends that the card is small")
def test_a_run_is_made_to_fit_and_keeps_what_it_was_made(tmp_path, monkeypatch):
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be, that is the question. " * 60)
    config = tiny.config(text={"data": str(text)}, batch=40, segment=tiny.BRAIN.chunk)  # so on one stream
    backend = CudaBackend()
    card = budget.Card(backend.logits * 1024, "float32", backend.shared_memory, backend.multiprocessors)
    needed = total(config.replace(brain={"vocabulary": 17}), card)
    limit = CUBLAS - WORKSPACE + int(0.7 * (needed - CUBLAS + WORKSPACE))
    monkeypatch.setattr(CudaBackend, "memory", lambda self: (limit, backend.logits * 1024))
    with pytest.raises(BackendError, match="out of GPU memory"):
        Trainer(config, tmp_path, backend)
    trainer = Trainer(config, tmp_path, backend, fit=True)
    assert total(trainer.config, card) <= limit < needed
    output = itertools.takewhile(lambda report: report.kind == "notice", trainer.reports())
    assert any(notice.text.startswith("made to fit into ") for notice in output)
    assert json.loads((tmp_path / "config.json").read_text())["training"]["batch"] == trainer.config.training.batch < 40


@pytest.mark.parametrize("settings", [["--memory-limit", "3.2GB"], ["--fit"]])
def test_the_memory_of_the_cpu_is_not_limited(settings, tmp_path, capsys):
    assert main(["train", "--backend", "cpu", "--out", str(tmp_path), *settings]) == 2
    assert "are about a GPU's memory, and this run is on the CPU" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words, output",
    [
        ([], "24 GiB, in bf16."),
        (["--preset", "gtx1650"], "4 GiB, in fp32."),
        (["--preset", "gtx1650", "--memory-limit", "2.5GB"], "2.50 GB, in fp32."),  # into which it fits in fp32 alone
        (["--preset", "gtx1650", "--memory-limit", "8GiB"], "8 GiB, in bf16."),
        (["--memory-limit", "8GiB", "--precision", "fp16"], "8 GiB, in fp16."),
        (["--memory-limit", "2GiB", "--precision", "bf16"], "2 GiB, in bf16."),
    ],
)
def test_a_plan_says_for_which_card_it_holds(words, output, capsys):
    assert main(["plan", "--backend", "cpu", *words]) == 0
    shown = capsys.readouterr().out
    assert f"No GPU here: planned for a card with {output}" in shown and "multiprocessors" not in shown


LARGE = ["--preset", "scale-4gb", "--batch-size", "8", "--seq-length", "256"]


@pytest.mark.parametrize(
    "words, code, output",
    [
        ([], 0, "MB in fp16 fit into the 24 GiB of such a card."),
        (LARGE, 0, "do not fit into the 4 GiB of such a card; any of these makes it fit: --batch-size "),
        (["--memory-limit", "1GB"], 0, "MB in fp16 fit into the limit of 1.00 GB."),
        ([*LARGE, "--memory-limit", "4GB"], 2, "do not fit into the limit of 4.00 GB; any of these makes it fit: --batch-size "),
        ([*LARGE, "--memory-limit", "4GB", "--fit"], 0, "GB in fp16 fit into the limit of 4.00 GB."),
        (["--set", "training.memory_limit=150MB"], 2, "do not fit into the limit of 150.00 MB; "),
    ],
)
def test_a_plan_ends_with_whether_it_fits(words, code, output, capsys):
    assert main(["plan", "--backend", "cpu", "--precision", "fp16", *words]) == code
    shown = capsys.readouterr()
    assert output in (shown.err if code else shown.out).splitlines()[-1]


@pytest.mark.parametrize(
    "words, code, output", [([], 0, "fit into the 1.07 GB that are free."), (LARGE, 2, "do not fit into the 1.07 GB ")]
)
def test_a_plan_for_a_card_is_held_against_what_is_free_on_it(words, code, output, monkeypatch, capsys):
    monkeypatch.setattr(backends, "get", lambda *how: Small())
    assert main(["plan", *words]) == code
    shown = capsys.readouterr()
    assert output in (shown.err if code else shown.out).splitlines()[-1] and "for a small card with 2.15 GB" in shown.out
    if code:
        assert main(["plan", "--memory-limit", "2GB", *words]) == code
        assert "do not fit into the limit of 2.00 GB; " in capsys.readouterr().err


def test_a_plan_is_for_the_card_that_is_named(monkeypatch):
    asked, cpu = [], backends.get("cpu")
    monkeypatch.setattr(backends, "get", lambda *how: asked.append(how) or cpu)
    assert main(["plan", "--gpu-device", "1"]) == 0
    assert asked == [("auto", 1)]


def test_nothing_may_help():
    assert "use a smaller --preset" in budget.advice(get_preset("llm"), CARD, 10**6)


def test_a_sheet_has_the_shape_that_an_array_would_have():
    array, meta = np.zeros((4, 6), np.float32), MetaArray((4, 6))
    for shape in (
        lambda x: x[1:3],
        lambda x: x[0],
        lambda x: x[:, :2],
        lambda x: x[:, None],
        lambda x: x.reshape(-1),
        lambda x: x.reshape(2, -1, 3),
        lambda x: x.reshape((8, 3)),
        lambda x: x.T,
        lambda x: x.view("uint16"),
        lambda x: 1 - x**2,
        lambda x: np.add(x, x[0], out=x),
    ):
        expected, found = shape(array), shape(meta)
        assert (found.shape, found.nbytes, len(found)) == (expected.shape, expected.nbytes, len(expected))
    meta[...] = 3


@pytest.mark.parametrize(
    "text, size", [("3.2GB", 3_200_000_000), ("500 MiB", 500 * 2**20), ("4000000000", 4 * 10**9), ("7KB", 7000), ("1gib", 2**30)]
)
def test_sizes(text, size):
    assert size_of(text) == size


def test_the_limit_of_a_run_is_a_size():
    assert tiny.config(memory_limit="3.2GB").training.memory_limit == "3.2GB"
    with pytest.raises(ConfigError, match="training.memory_limit much: not a size; write for example 3.2GB"):
        tiny.config(memory_limit="much")


def test_the_command_draws_a_table_and_writes_it_down(tmp_path, capsys):
    file = tmp_path / "plan.json"
    assert main(["plan", "--backend", "cpu", "--batch-size", "3", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())
    assert rows.pop("total") == sum(rows.values())
    table = capsys.readouterr().out
    assert "nano: 3 sequences of 64 tokens" in table and all(name in table for name in rows)


def test_one_sequence_is_not_called_sequences(capsys):
    assert main(["plan", "--backend", "cpu", "--batch-size", "1", "--seq-length", "1"]) == 0
    assert "nano: 1 sequence of 1 token " in capsys.readouterr().out


def test_the_command_prints_its_figures_and_nothing_else(capsys):
    assert main(["plan", "--backend", "cpu", "--memory-limit", "220MB", "--fit", "--json"]) == 0
    shown = capsys.readouterr()
    rows = json.loads(shown.out)
    assert rows.pop("total") == sum(rows.values()) and "made to fit into 220.00 MB: " in shown.err


@pytest.mark.parametrize(
    "words, output",
    [
        (["--memory-limit", "many"], "--memory-limit many: not a size; write for example 3.2GB or 500MiB"),
        (["--memory-limit", "0GB"], "--memory-limit 0GB: not a size"),
        (["--memory-limit", "3.2"], "--memory-limit 3.2: a unit is missing, as in 3.2GB or 3.2MB"),
        (["--memory-limit", "999999"], "--memory-limit 999999: a unit is missing"),
        (["--set", "training.memory_limit='4'"], "training.memory_limit 4: a unit is missing"),
        (["--memory-limit", "-3GB"], "expected one argument"),
        (["--batch-size", "0"], "training.batch: at least 1, not 0"),
        (["--memory-limit", "220MB"], "in fp32 do not fit into the limit of 220.00 MB; any of these makes it fit: --batch-size"),
        (["--fit"], "--fit: there is no GPU; give a --memory-limit"),
        (["--fit", "--memory-limit", "1MB"], "do not fit into 1.00 MB; no single change makes it fit"),
        (["--json", "/nowhere/plan.json"], "--json: /nowhere/plan.json: there is no folder /nowhere"),
    ],
)
def test_mistakes(words, output, capsys):
    assert main(["plan", "--backend", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert output in error and error.count("\n") == 1


@pytest.mark.parametrize("broca", [Module(2048, outputs=768), Module(768)])
def test_a_tied_brain_is_advised_too(broca):
    config = get_preset("wikitext").replace(brain={"vocabulary": 33278, "broca": broca})
    assert list(budget.what_would_fit(config, CARD, int(0.8 * total(config))))


def test_where_no_single_change_suffices_several_are_made_together():
    config = get_preset("llm")
    card, limit = budget.Card(3 * 10**9), 3 * 10**9
    assert not list(budget.what_would_fit(config, card, limit))
    output = budget.advice(config, card, limit)
    assert re.search("together these do: --activation-memory recompute --optimizer adafactor --batch-size [0-9]+$", output)
    assert budget.advice(config, card, 5 * 10**8) == budget.HOPELESS


def test_the_cost_model_counts_the_sums_of_an_update():
    config, begun, meta = get_preset("llm"), [], MetaBackend(2**37, "bfloat16", 2**17, 132)
    brain, act = NeuroGenModel.on_meta(config, meta).brain, SimpleNamespace(token_rows=None)
    buckets = Buckets(brain, act, SimpleNamespace(size=2, begin=begun.append))
    for bucket in ("decoder", "embedding", "rest"):
        buckets.sum(bucket)
    sent = communication(config, meta, 2)
    assert sent.sums == len(begun) and sent.early + sent.late == 4 * sum(array.size for array in begun)
