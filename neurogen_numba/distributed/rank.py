"""A rank: `python -m neurogen_numba.distributed.rank COMMAND WORDS`, started by its supervisor (supervise.py)."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

from . import launch
from .communicator import become
from .pulse import Pulse
from .supervise import rank

PR_SET_PDEATHSIG = 1  # Linux: the signal that a process gets when the one that started it ends
LATER = 5.0  # seconds until a rank says that it has lost the others: by then the launcher has ended it, if a supervisor gave the reason


def main() -> int:
    command, *words = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pulse = Pulse(int(os.environ[launch.RANK]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # mpi4py's, of what `strangers` says
        from mpi4py import MPI

    from .mpi import Mpi

    ranks = Mpi(pulse)
    if why := launch.strangers(ranks.size, MPI.Get_library_version()):
        if rank() in ("0", "?"):
            launch.report(f"neurogen {command}: {why}")
        else:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(2))  # without a word of the supervisor
            time.sleep(LATER)  # by then rank 0 has said it, and the launcher has ended this one
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("NUMBA_NUM_THREADS", str(max(1, cores // ranks.local_size)))
    become(ranks)
    module, errors = importlib.import_module(f"neurogen_numba.{command}"), io.StringIO()
    quiet = contextlib.ExitStack()
    if ranks.rank:  # rank 0 shows, and says what is wrong on all
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(contextlib.redirect_stderr(errors))
    try:
        with quiet:
            code = module.main(words)
            if ranks.leads and not ranks.broken:
                ranks.order("end", code)
    except SystemExit as ended:
        code = ended.code or 0
    except MPI.Exception as error:
        time.sleep(LATER)
        launch.report(f"neurogen {command}: rank {ranks.rank} on {ranks.host} has lost the others ({error}); {launch.RESUME}")
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        ranks.abort(1)
    sys.stdout.flush()
    sys.stderr.flush()
    if ranks.broken and ranks.rank:
        why = " ".join(errors.getvalue().split()).removeprefix(f"neurogen {command}: ")
        launch.report(f"neurogen {command}: rank {ranks.rank} on {ranks.host}: {why}")
    if ranks.rank == 0 and launch.CODE in os.environ:
        Path(os.environ[launch.CODE]).write_text(str(code))
    if ranks.broken:
        ranks.abort(code)
    MPI.Finalize()
    return code


if __name__ == "__main__":
    sys.exit(main())
