"""Several ranks: the result of one process, the same bits twice, one face, and one sentence where they cannot."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w

import ranks
import tiny
from neurogen_numba.bench import main as bench
from neurogen_numba.config import size_in_words
from neurogen_numba.distributed import launch, supervise
from neurogen_numba.distributed.communicator import SOLO, part
from neurogen_numba.distributed.pulse import Pulse
from neurogen_numba.plan import main as plan
from neurogen_numba.storage import checkpoint
from neurogen_numba.train import main as train
from same import assert_equal_runs, last_checkpoint, measured

MPI = pytest.importorskip("mpi4py.MPI")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.skipif(os.name != "posix", reason="ranks run on Linux and macOS")]

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | launch.permissive() | {"NUMBA_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
TRAINING = {"steps": 24, "eval_interval": 12, "sample_interval": 12, "checkpoint_interval": 4, "dropout": 0.1, "axon_dropout": 0.1}
TRAIN = [sys.executable, "-m", "neurogen_numba", "train", "--backend", "cpu", "--plain"]


def run(words, code=0):
    """(standard output, standard error) of a command that ends with this exit code."""
    done = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert done.returncode == code, done.stderr + done.stdout
    return done.stdout, done.stderr


def complaints(errors):
    """The lines of standard error, without the progress of kernels that are compiled for the first time."""
    return [line for line in errors.splitlines() if not line.startswith("compiling kernels")]


def test_a_launcher_of_another_mpi_is_named_once(tmp_path):
    """Two processes that a launcher of Open MPI seems to have started, while mpi4py's MPI knows nothing of it."""
    if "OMPI_COMM_WORLD_SIZE" in os.environ or "Open MPI" in MPI.Get_library_version():
        pytest.skip("mpi4py is of Open MPI")
    code = "from neurogen_numba.distributed import rank; rank.LATER = 0; raise SystemExit(rank.main())"
    words, descriptor, output = [sys.executable, "-c", code, "train", "--out", str(tmp_path)], os.open(os.devnull, os.O_WRONLY), []
    for number in "01":
        fake = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": number, launch.RANK: str(descriptor)}
        done = subprocess.run(words, env=ENVIRONMENT | fake, pass_fds=[descriptor], capture_output=True, text=True, timeout=100)
        assert done.returncode == 2, done.stderr
        output.append(done.stderr)
    os.close(descriptor)
    assert output[0].count("\n") == 1 and "MPICH" in output[0] and not list(tmp_path.iterdir())
    assert "mpi4py and the launcher are of different MPIs: 2 processes were started" in output[0] and output[1] == ""


def test_a_world_of_the_launchers_size_is_right(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    assert launch.strangers(2, "MPICH Version: 5") == ""
    assert "mpi4py's Open MPI v5.0 sees one; run `neurogen doctor`" in launch.strangers(1, "Open MPI v5.0, package: x")
    monkeypatch.setenv("PMI_SIZE", "1")
    assert launch.strangers(1, "MPICH Version: 5") == ""


@pytest.fixture(scope="module")
def alone():
    """What one process learns of every case."""
    return {case: ranks.learn(SOLO, case) for case in ranks.CASES}


@pytest.fixture(scope="module")
def learned(alone, tmp_path_factory):
    """Number of ranks -> the folder with what they have learned of every case. Their kernels are on disk: one process has compiled them."""
    folders = {number: tmp_path_factory.mktemp(f"{number}-ranks") for number in (2, 3)}
    for number, folder in folders.items():
        run([launch.mpiexec(), "-n", str(number), sys.executable, str(ROOT / "tests" / "ranks.py"), str(folder)])
    return folders


EVERY = [(size, case) for size in (2, 3) for case in ranks.cases_of(size)]


@pytest.mark.parametrize("size, case", EVERY)
def test_ranks_learn_what_one_process_learns(alone, learned, size, case):
    (expected, arrays), found = alone[case], ranks.load(learned[size], size, case, shard=False)
    for column, tolerance in ((0, 1e-4), (2, 1e-2), (3, 0)):  # loss, norm of the gradient, bundles rewired
        np.testing.assert_allclose(found["figures"][:, column], expected["figures"][:, column], rtol=tolerance)
    assert {name for name in found if "/" in name} == set(arrays)
    for name, array in arrays.items():
        assert found[name].shape == array.shape and found[name].dtype == array.dtype, name
        if name.startswith("state/"):
            assert np.abs(found[name] - array).max() < 0.02 * max(1, np.abs(array).max()), name


@pytest.mark.parametrize("size, case", EVERY)
def test_ranks_that_share_the_moments_end_with_the_same_bits(learned, size, case):
    whole, parts = (ranks.load(learned[size], size, case, shard) for shard in (False, True))
    assert [name for name in whole if whole[name].tobytes() != parts[name].tobytes()] == [] and whole.keys() == parts.keys()


def test_the_speed_of_all_ranks_is_measured_together(learned, capsys):
    for size, folder in learned.items():
        result = json.loads((folder / "bench.json").read_text())
        assert result["ranks"] == size and result["tokens_per_second"] > 0
    assert bench(["decode", "--gpus", "2"]) == 2
    assert "--gpus: decode runs in one process; drop it, or measure train" in capsys.readouterr().err


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A folder with a text, and the settings of a run that takes a second."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "sheep.txt").write_text("".join(f"{number} sheep, " for number in range(400)))
    settings = tiny.config({"data": str(folder / "sheep.txt")}, **TRAINING).to_dict() | {"preset": "nano"}
    del settings["brain"]["vocabulary"]
    (folder / "tiny.toml").write_text(tomli_w.dumps(settings))
    return folder


def flags(location, name):
    return ["--out", str(location), "--name", name, "--config", str(location / "tiny.toml")]


@pytest.fixture(scope="module")
def whole(location):
    """A run of two ranks that nobody disturbs, and what it said."""
    output, errors = run([*TRAIN, *flags(location, "whole"), "--gpus", "2"])
    assert complaints(errors) == []
    return location / "whole", output


def losses(folder):
    return np.array([record["loss"] for record in measured(folder) if record["kind"] == "step"])


def test_a_run_of_two_ranks_is_shown_and_saved_once(location, whole, capsys):
    folder, output = whole
    assert train(["--backend", "cpu", "--plain", *flags(location, "alone")]) == 0
    lines = [
        [line.split("  ")[0] for line in text.replace("/alone", "/whole").splitlines()[1:]] for text in (capsys.readouterr().out, output)
    ]
    assert [line for line in lines[0] if "saved" not in line] == [line for line in lines[1] if "saved" not in line]
    np.testing.assert_allclose(losses(folder), losses(location / "alone"), rtol=1e-4)
    (tensors, documents, name), (alone, alone_documents, alone_name) = last_checkpoint(folder), last_checkpoint(location / "alone")
    assert name == alone_name and documents == alone_documents
    assert {key: array.shape for key, array in tensors["state"].items()} == {key: array.shape for key, array in alone["state"].items()}


def ranks_of(name):
    """Number of a rank -> its process, of a run of this name."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words, variables = ((process / file).read_bytes().split(b"\0") for file in ("cmdline", "environ"))
        except OSError:
            continue
        if b"neurogen_numba.distributed.rank" in words and name.encode() in words:
            numbers = dict(variable.split(b"=", 1) for variable in variables if b"=" in variable)
            found[int(next(numbers[each.encode()] for each in supervise.NUMBERS if each.encode() in numbers))] = int(process.name)
    return found


def start(location, name, *words, step):
    """A run, as soon as it has made a step."""
    process = subprocess.Popen(
        [*TRAIN, *flags(location, name), *words], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            break
    return process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a rank in /proc")
def test_a_rank_that_is_killed_ends_the_run_which_resumes_bit_for_bit(location, whole):
    process = start(location, "killed", "--gpus", "2", step=9)
    os.kill(ranks_of("killed")[1], signal.SIGKILL)
    began = time.monotonic()
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and time.monotonic() - began < 60
    assert "rank 1 on " in errors and "was killed by signal 9 (SIGKILL); all ranks end" in errors and len(complaints(errors)) == 1
    assert ranks_of("killed") == {}
    output, _ = run([*TRAIN, "--resume", str(location / "killed"), "--gpus", "2", "--shard-optimizer"])
    assert "resuming from step" in output
    assert_equal_runs(location / "killed", whole[0])


def test_a_run_that_is_stopped_goes_on_with_another_number_of_ranks(location, whole):
    process = start(location, "stopped", "--gpus", "3", step=5)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "everything is saved" in output and complaints(errors) == []
    stopped = checkpoint.step_of(checkpoint.latest(location / "stopped"))
    assert 5 <= stopped < 24
    assert train(["--backend", "cpu", "--plain", "--resume", str(location / "stopped")]) == 0  # one process, this one
    np.testing.assert_allclose(losses(location / "stopped"), losses(whole[0]), rtol=1e-4)
    places = [last_checkpoint(folder)[1]["trainer"]["position"] for folder in (location / "stopped", whole[0])]
    assert places[0] == places[1]


SPLIT = ["-n", "1", *TRAIN, "--out", "OUT", "--config", "TOML"]


@pytest.mark.parametrize(
    "first, second, sentence",
    [
        (["--seed", "1"], ["--seed", "2"], "has another --seed than rank 0, '2' instead of '1'; start every rank with the same version"),
        ([], ["--bogus"], "rank 1 on "),
        (["--data", "/nowhere.txt"], ["--data", "/nowhere.txt"], "/nowhere.txt: no such file or folder; check the path"),
    ],
    ids=["other settings", "a mistake of one", "no text"],
)
def test_what_ranks_cannot_do_is_said_once(location, first, second, sentence):
    words = [str(location / "tiny.toml") if word == "TOML" else str(location / "refused") if word == "OUT" else word for word in SPLIT]
    _, errors = run([launch.mpiexec(), *words, *first, ":", *words, *second], code=2)
    lines = [line for line in errors.splitlines() if line.startswith("neurogen")]
    assert len(lines) == 1 and sentence in lines[0] and "Traceback" not in errors
    assert not (location / "refused").exists()


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--gpus", "0"], "--gpus 0: a number of processes, at least 1"),
        (["--gpus", "two"], "--gpus: an integer is needed, not 'two'"),
        (["--gpus", "17"], "a batch has 16 sequences, and 17 ranks share it; raise --batch-size, or start fewer"),
        (["--gpus", "2", "--backend", "auto"], "--gpus 2: there are none on this machine; ask for fewer, or add --backend cpu"),
        (["--gpus", "2", "--gpu-device", "1"], "--gpu-device 1: each of several processes takes a GPU of its own"),
        (["--gpus", "2", "--fit"], "--fit: it plans for one process"),
        (["--shard-optimizer"], "--shard-optimizer: one process has no others to share with; add --gpus N, or drop it"),
    ],
)
def test_bad_flags(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("neurogen_numba.backends.probe.look", lambda: type("Found", (), {"gpus": ()}))
    assert train(["--backend", "cpu", "--out", str(tmp_path / "runs"), *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and not (tmp_path / "runs").exists()


def test_without_mpi_or_nccl_a_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    words = ["--gpus", "2", "--out", str(tmp_path / "runs")]
    monkeypatch.setattr("neurogen_numba.backends.probe.look", lambda: type("Found", (), {"gpus": (1, 2)}))

    def missing():
        raise ImportError("libnccl.so.2: no such file")

    monkeypatch.setattr("neurogen_numba.distributed.nccl.library", missing)
    assert train(words) == 2
    assert "need NCCL, and it does not load (libnccl.so.2: no such file); pip install" in capsys.readouterr().err
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    monkeypatch.setattr(launch.sys, "executable", str(tmp_path / "python"))
    assert train([*words, "--backend", "cpu"]) == 2
    assert "there is no mpiexec; pip install" in capsys.readouterr().err
    assert launch.trial() == "several ranks need an MPI, and there is no mpiexec"
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: None)
    assert train([*words, "--backend", "cpu"]) == 2
    assert "mpi4py is not installed; pip install" in capsys.readouterr().err


def test_two_ranks_on_one_card_are_refused():
    from neurogen_numba.distributed.mpi import Mpi
    from neurogen_numba.errors import ConfigError

    made = Mpi.__new__(Mpi)
    made.size, made.host, made.everyone = 2, "here", lambda thing: [thing, thing]
    backend = type("Backend", (), {"logits": 1, "card": lambda self: "0000:01"})()
    with pytest.raises(ConfigError, match="ranks 0 and 1 are both on the card 0000:01 of here; start one rank a GPU"):
        made.bind(backend)


@pytest.mark.parametrize("size, parts", [(16, 2), (5, 3), (3, 3), (7, 1)])
def test_parts_are_neighbours_and_differ_by_one_at_most(size, parts):
    slices = [part(size, number, parts) for number in range(parts)]
    assert np.concatenate([np.arange(size)[each] for each in slices]).tolist() == list(range(size))
    sizes = [each.stop - each.start for each in slices]
    assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)


def beats(descriptor):
    return [json.loads(line) for line in os.read(descriptor, 4096).splitlines()]


def test_an_update_that_takes_far_longer_than_others_is_late_and_waiting_is_not(monkeypatch):
    monkeypatch.setattr("neurogen_numba.distributed.pulse.BEAT", 0.02)
    monkeypatch.setattr("neurogen_numba.distributed.pulse.PATIENCE", 0.15)
    reads, writes = os.pipe()
    pulse = Pulse(writes)
    for _ in range(3):  # the first ones compile
        with pulse.working("update"):
            pass
    with pulse.working("update 4"), pulse.waiting():
        time.sleep(0.4)
    assert {beat["late"] for beat in beats(reads)} == {""}
    with pulse.working("update 5"):
        time.sleep(0.4)
    assert "update 5 has taken 0 seconds" in {beat["late"] for beat in beats(reads)}
    os.close(reads)  # its thread ends


def test_a_rank_without_a_sign_of_life_is_ended(monkeypatch):
    for name in ("SILENCE", "STARTING"):
        monkeypatch.setattr(supervise, name, 0.2)
    monkeypatch.setattr(supervise, "POLL", 0.05)
    reads, writes = os.pipe()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        assert supervise._watch(process, reads).startswith("hangs: no sign of life for ")
        os.write(writes, b'{"joined": true, "late": "update 9 has taken 50 seconds"}\n')
        assert supervise._watch(process, reads) == "hangs, or waits for a card that does: update 9 has taken 50 seconds"
        process.kill()
    for descriptor in (reads, writes):
        os.close(descriptor)


def test_a_plan_says_what_several_gpus_hold_and_send(capsys):
    def planned(*words):
        assert plan(["--backend", "cpu", "--json", *words]) == 0
        return json.loads(capsys.readouterr().out)

    alone, four = planned("--batch-size", "4"), planned("--gpus", "4", "--batch-size", "16")
    assert four["activity"] == alone["activity"] and four["optimiser"] == alone["optimiser"]
    sharded = planned("--gpus", "4", "--shard-optimizer", "--tokens-per-second", "1e5")
    assert sharded["optimiser"] == pytest.approx(four["optimiser"] / 4, rel=0.05)
    sent, more = four["gpus"], sharded["gpus"]
    numbers = 1155072  # of nano's flat gradient
    assert sent["bytes_sent"] == pytest.approx(2 * 3 / 4 * 4 * numbers) and sent["early"] == pytest.approx(2 * 3 / 4 * 4 * 529408, rel=0.01)
    assert more["bytes_sent"] - sent["bytes_sent"] == pytest.approx(3 / 4 * 4 * numbers)
    assert 3.5e5 < more["tokens_per_second"] < 4e5
    assert plan(["--backend", "cpu", "--gpus", "4"]) == 0
    shown = capsys.readouterr().out
    assert "one of 4 GPUs, which share a batch of 16 sequences" in shown and size_in_words(sent["bytes_sent"]) in shown


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--gpus", "17"], "--gpus 17: at most one for each of 16 sequences; raise --batch-size"),
        (["--gpus", "0"], "--gpus 0: at least 1"),
        (["--gpus", "2", "--fit", "--memory-limit", "1GB"], "--fit plans for one GPU"),
        (["--tokens-per-second", "9"], "--tokens-per-second is about several GPUs"),
        (["--shard-optimizer"], "--shard-optimizer is about several GPUs"),
        (["--gpus", "2", "--tokens-per-second", "0"], "--tokens-per-second 0.0: a speed above 0"),
    ],
)
def test_bad_plans(words, sentence, capsys):
    assert plan(["--backend", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


class Recorded:
    """Stands for CuPy's module of NCCL, its communicator and a CUDA backend; notes what is called."""

    NCCL_FLOAT32, NCCL_SUM, NcclError = "float32", "sum", OSError

    def __init__(self):
        self.calls, self.ptr = [], "stream"

    def NcclCommunicator(self, *how):
        self.calls.append(("connect", *how))
        return self

    def get_unique_id(self):
        return "name"

    def fork(self, name):
        self.calls.append(("fork", name))
        return self

    def __getattr__(self, name):
        return lambda *how: self.calls.append((name, *how))


class OnCard:
    """Stands for a CuPy array: its size, and its address."""

    def __init__(self, size, first=0):
        self.size, self.data = size, type("Memory", (), {"ptr": first})

    def __getitem__(self, numbers):
        return OnCard(numbers.stop - numbers.start, self.data.ptr + numbers.start)


def test_cards_add_up_beside_the_main_stream_and_share_their_parts(monkeypatch):
    from neurogen_numba.backends.compiling import Launches
    from neurogen_numba.distributed import nccl

    recorded, two = Recorded(), type("Two", (type(SOLO),), {"size": 2, "rank": 1, "shard": True, "order": lambda self, what: ("name",)})()
    monkeypatch.setattr(nccl, "library", lambda: recorded)
    made = nccl.Nccl(two, recorded)
    assert recorded.calls == [("connect", 2, "name", 1)]
    recorded.calls.clear()
    made.join()  # nothing has begun
    with Launches().noting():
        made.begin(OnCard(9, 100))
        made.share_parts(OnCard(3 * 4096))
    assert recorded.calls == []
    made.begin(OnCard(9, 100))
    made.join()
    assert recorded.calls == [("fork", "gradients"), ("allReduce", 100, 100, 9, "float32", "sum", "stream"), ("join", "gradients")]
    recorded.calls.clear()
    made.share_parts(OnCard(3 * 4096, 100))
    sent = [("bcast", 100, 8192, "float32", 0, "stream"), ("bcast", 8292, 4096, "float32", 1, "stream")]
    assert recorded.calls == [("fork", "gradients"), ("groupStart",), *sent, ("groupEnd",), ("join", "gradients")]
