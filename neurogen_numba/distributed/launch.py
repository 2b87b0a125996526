"""How ranks come to be: `neurogen train --gpus N` starts them here through mpiexec; mpirun and srun start them from outside."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from ..errors import BackendError, ConfigError
from .communicator import Solo, check_batch

RANK = "NEUROGEN_RANK"  # set in a process that is a rank: the descriptor that it beats into (pulse.py)
STREAMS = {1: "NEUROGEN_STDOUT", 2: "NEUROGEN_STDERR"}  # descriptor -> what ranks write to in its place: a terminal, or a named pipe
LAUNCHER = "NEUROGEN_LAUNCHER"  # the process of `launch`
CODE = "NEUROGEN_EXIT_CODE"  # the file that gets the exit code of rank 0
INSTALL = 'pip install "mpi4py>=4.1" "mpich>=5.0", or pip install -e ".[distributed]"'
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")  # set by MPICH's mpiexec and Intel's, Open MPI's, and srun
WITHIN = "SLURM_STEP_ID"  # srun sets its variables; a shell of salloc has those of the job only
REPORTED = "reported"  # a file beside it, once a rank has reported why all end
TRIAL = 30.0  # seconds
POLL = 0.5
LAST_WORDS = 5.0  # seconds in which the output of ended ranks is copied
RESUME = "`neurogen train --resume` goes on from the last checkpoint, with any number of ranks"


def add_flags(group) -> None:
    """Add the flags of a command that ranks can run."""
    many = "processes on this machine that share each batch, one a GPU; with --backend cpu, on the CPU"
    group.add_argument("--gpus", type=int, default=None, help=many)
    shard = "each process keeps a part of the optimizer's state: less memory, the same bits"
    group.add_argument("--shard-optimizer", action="store_true", help=shard)


def is_rank() -> bool:
    """Whether this process is a rank, started by its supervisor."""
    return RANK in os.environ


def started_from_outside() -> bool:
    """Whether mpirun or srun has started this process as one of several, so that it is to supervise a rank."""
    return not is_rank() and ranks_around() > 1


def supervised(command: str, words: list[str] | None) -> int:
    """Run a command as a rank under a supervisor. Returns its exit code."""
    from .supervise import supervise

    check_mpi()
    return supervise(command, sys.argv[1:] if words is None else words)


def wanted(args) -> bool:
    """Whether the flags of a command ask for ranks that are still to be started."""
    return (args.gpus or 1) > 1 and not is_rank()


def check(args, batch: int | None, communicator: Solo) -> None:
    """Check what the flags and the launcher ask for, in every rank and before any is started. batch: sequences of an update, if known.

    Raises ConfigError, or BackendError where MPI is missing."""
    if args.gpus is not None and args.gpus < 1:
        raise ConfigError(f"--gpus {args.gpus}: a number of processes, at least 1")
    if is_rank() and args.gpus not in (None, communicator.size):
        raise ConfigError(f"--gpus {args.gpus}: {communicator.size} ranks have been started; drop --gpus, or start as many")
    ranks = communicator.size if is_rank() else args.gpus or 1
    communicator.shard = args.shard_optimizer and ranks > 1
    if args.shard_optimizer and ranks == 1:
        raise ConfigError("--shard-optimizer: one process has no others to share with; add --gpus N, or drop it")
    if ranks == 1:
        return
    if args.gpu_device:
        raise ConfigError(
            f"--gpu-device {args.gpu_device}: each of several processes takes a GPU of its own; choose by CUDA_VISIBLE_DEVICES"
        )
    if getattr(args, "fit", None):
        raise ConfigError("--fit: it plans for one process; see `neurogen plan --gpus`, and give the flags that it names")
    if batch is not None:
        check_batch(batch, ranks)
    if not is_rank():
        check_mpi()
        mpiexec()
        if args.backend != "cpu":
            _check_cards(args)


def _check_cards(args):
    from ..backends import probe
    from . import nccl

    if probe.simulated():
        raise ConfigError("--gpus: the simulator has one GPU; add --backend cpu for processes on the CPU")
    cards = len(probe.look().gpus)
    if cards < args.gpus:
        there = f"there {'is' if cards == 1 else 'are'} {cards or 'none'}"
        raise ConfigError(f"--gpus {args.gpus}: {there} on this machine; ask for fewer, or add --backend cpu for processes on the CPU")
    nccl.check()


def backend_of(args, communicator: Solo, settings: dict):
    """The backend that the flags choose; of a rank, the card that is its own. Raises ConfigError where ranks differ in version, flags or
    settings (sections of them), or share a card."""
    from .. import __version__, cli

    if communicator.size == 1:
        return cli.backend_of(args)
    flags = {f"--{name.replace('_', '-')}": str(value) for name, value in vars(args).items() if name != "gpus"}
    fields = {f"{name}.{key}": value for name, fields in settings.items() if isinstance(fields, dict) for key, value in fields.items()}
    communicator.check_same({"version": __version__} | flags | fields)
    with communicator.agreed():
        if args.backend != "cpu":
            from ..backends import probe

            args.gpu_device = communicator.local_rank % max(1, len(probe.look().gpus))
        backend = cli.backend_of(args)
    communicator.check_same({"backend": backend.name, "precision": backend.product_dtype})
    communicator.bind(backend)
    return backend


def follow(communicator: Solo, backend) -> int:
    """Train as rank 0 orders. Returns the exit code. A signal to end is passed on to rank 0 with the next update."""
    from ..learning.stopping import Signals
    from .team import follow

    with Signals() as signals:
        signals.hand_over(communicator.stop)
        signals.tell = lambda sentence: None  # rank 0 says it
        return follow(communicator, backend)


def ranks_around() -> int:
    """How many processes a launcher of MPI has started this one among; 1 without one."""
    for name in SIZES:
        value = os.environ.get(name, "")
        if value.isdigit() and (not name.startswith("SLURM") or WITHIN in os.environ):
            return int(value)
    return 1


def strangers(size: int, library: str) -> str:
    """Why this rank is alone, as a sentence: its launcher has started several, but the world of MPI has `size` = 1. Empty where it is not.

    A process whose MPI does not understand the launcher is rank 0 of a world of its own. library: MPI's words about its version."""
    around = ranks_around()
    if size > 1 or around == 1:
        return ""
    mine = " ".join(library.replace(",", " ").split()[:3])
    different = "mpi4py and the launcher are of different MPIs"
    return f"{different}: {around} processes were started, and mpi4py's {mine} sees one; run `neurogen doctor`, which says how to mend it"


def check_mpi() -> None:
    """Raises BackendError where mpi4py is not installed, or on Windows."""
    if os.name != "posix":
        raise BackendError("several ranks run on Linux and macOS only; drop --gpus")
    if importlib.util.find_spec("mpi4py") is None:
        raise BackendError(f"several ranks need mpi4py and an MPI, and mpi4py is not installed; {INSTALL}")


def mpiexec() -> str:
    """The launcher of MPI: that of the environment this Python is in, else that of PATH. Raises BackendError where there is none."""
    beside = Path(sys.executable).parent / "mpiexec"
    found = str(beside) if beside.is_file() else shutil.which("mpiexec") or shutil.which("mpirun")
    if not found:
        raise BackendError(f"several ranks need an MPI, and there is no mpiexec; {INSTALL}")
    return found


def trial() -> str:
    """Why two processes do not add up through MPI; empty where they do."""
    words = "from mpi4py import MPI; raise SystemExit(MPI.COMM_WORLD.allreduce(1) != 2)"
    try:
        line = [mpiexec(), "-n", "2", sys.executable, "-c", words]
        done = subprocess.run(line, env=os.environ | permissive(), capture_output=True, text=True, errors="replace", timeout=TRIAL)
    except BackendError as error:
        return str(error).rpartition("; ")[0]
    except subprocess.TimeoutExpired:
        return f"two processes did not end within {TRIAL:.0f} seconds"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return "" if done.returncode == 0 else f"two processes do not run: {lines[-1].strip() if lines else done.returncode}"


def launch(command: str, words: list[str] | None, ranks: int) -> int:
    """Run `neurogen COMMAND WORDS` as this many ranks on this machine. Returns the exit code of rank 0.

    Ranks use the standard streams of this process: a view is drawn as without them. Ctrl-C and SIGTERM are passed on once; again, they end
    all ranks at once. Raises BackendError where mpiexec fails.
    """
    words = sys.argv[1:] if words is None else words
    with tempfile.TemporaryDirectory(prefix="neurogen-") as folder:
        code = Path(folder) / "code"
        streams = {descriptor: Output(descriptor, Path(folder)) for descriptor in STREAMS}
        environment = (
            os.environ
            | permissive()
            | {CODE: str(code), LAUNCHER: str(os.getpid())}
            | {STREAMS[each]: stream.path for each, stream in streams.items()}
        )
        line = [mpiexec(), "-n", str(ranks), sys.executable, "-m", "neurogen_numba", command, *words]
        given = None if not sys.stdin.isatty() else subprocess.DEVNULL
        with subprocess.Popen(
            line,
            env=environment,
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        ) as process:
            output, asked = _wait(process, Path(folder) / REPORTED)
        for stream in streams.values():
            stream.close()
        if code.is_file():
            return int(code.read_text())
        if asked > 1:
            return 130
        if process.returncode and not (Path(folder) / REPORTED).is_file():
            last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
            raise BackendError(
                f"the ranks did not start or ended without a word ({Path(line[0]).name}: {last.strip()}); see neurogen doctor"
            )
        return 2 if process.returncode else 0


def permissive() -> dict[str, str]:
    """Variables that let Open MPI run as root, and more ranks than cores; MPICH does both unasked. MPICH stays on this machine."""
    return {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "HYDRA_LAUNCHER": "fork",  # ranks of this machine, also within a job of a scheduler
        "HYDRA_RMK": "user",
    }


def _wait(process, reported: Path) -> tuple[str, int]:
    """Wait for mpiexec, pass signals on, and end it where a rank has `reported`. Returns (what it said itself, number of signals)."""
    asked, ended = 0, 0.0

    def passed_on(number, frame):
        nonlocal asked
        asked += 1
        process.send_signal(signal.SIGUSR1 if asked == 1 else signal.SIGTERM)  # mpiexec hands SIGUSR1 to the ranks

    before = {number: signal.signal(number, passed_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while True:
            try:
                return process.communicate(timeout=POLL)[0], asked
            except subprocess.TimeoutExpired:
                if reported.is_file() and not ended:  # a launcher may not notice a rank that ends before it knows the others
                    ended = time.monotonic()
                elif ended and time.monotonic() - ended > LAST_WORDS:
                    process.terminate()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def report(sentence: str) -> None:
    """Print why ranks end, on standard error, unless another rank of this machine has done so."""
    if code := os.environ.get(CODE):
        try:
            (Path(code).parent / REPORTED).touch(exist_ok=False)
        except OSError:  # by another rank, or the launcher is gone
            return
    print(sentence, file=sys.stderr, flush=True)


class Output:
    """What ranks write to in place of a standard stream of `launch`: its terminal, or a pipe that is copied into it.

    mpiexec would make all streams pipes, and mix what it has to say itself into them.
    """

    def __init__(self, descriptor: int, folder: Path):
        self._descriptor, self._copier = descriptor, None
        if os.isatty(descriptor):
            self.path = os.ttyname(descriptor)
            return
        self.path = str(folder / f"stream-{descriptor}")
        os.mkfifo(self.path)
        self._reads = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self._writes = os.open(self.path, os.O_WRONLY)  # so that there is no end before `close`
        os.set_blocking(self._reads, True)
        self._copier = threading.Thread(target=self._copy, daemon=True)
        self._copier.start()

    def close(self) -> None:
        """Copy what is left."""
        if self._copier:
            os.close(self._writes)
            self._copier.join(LAST_WORDS)

    def _copy(self):
        try:
            while part := os.read(self._reads, 65536):
                while part:
                    part = part[os.write(self._descriptor, part) :]
        except OSError:  # the reader has ended: ranks get the same error
            os.close(self._reads)


def launcher_is_gone() -> bool:
    """Whether `launch` has started this process, and was killed since."""
    try:
        os.kill(int(os.environ.get(LAUNCHER, os.getpid())), 0)
    except ProcessLookupError:
        return True
    return False


def use_streams_of_launcher() -> None:
    """Write to the standard streams of `launch`, if it has started this process."""
    for descriptor, name in STREAMS.items():
        if path := os.environ.get(name):
            there = os.open(path, os.O_WRONLY | os.O_NOCTTY)
            os.dup2(there, descriptor)
            os.close(there)
