"""A process between a launcher of MPI and a rank: it says which rank ended why, and ends one that hangs.

A launcher ends all ranks when a process that it started ends with an error. It does so at once, and does not say which rank it was. So it
starts a supervisor, and this the rank: what the supervisor says, it says before it ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time

from . import launch

SILENCE = 25.0  # seconds without a beat after which a rank counts as hung
STARTING = 50.0  # and before it knows the others, which may start later
POLL = 0.5
NUMBERS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


def supervise(command: str, words: list[str]) -> int:
    """Run `neurogen COMMAND WORDS` as a rank in a process of its own. Returns its exit code; 2 where it was killed or hung."""
    launch.use_streams_of_launcher()
    reads, writes = os.pipe()
    os.set_inheritable(writes, True)
    environment = os.environ | {launch.RANK: str(writes)}
    line = [sys.executable, "-m", "neurogen_numba.distributed.rank", command, *words]
    process = subprocess.Popen(line, env=environment, close_fds=False)  # it needs the descriptors of the launcher
    os.close(writes)

    def passed_on(number, frame):
        process.send_signal(signal.SIGTERM if number == signal.SIGUSR1 else number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, passed_on)
    why = _watch(process, reads)
    if why:
        process.kill()
        process.wait()
    elif process.returncode < 0:
        why = f"was killed by signal {-process.returncode} ({signal.Signals(-process.returncode).name})"
    if not why:
        return process.returncode
    launch.report(f"neurogen {command}: rank {rank()} on {socket.gethostname()} {why}; all ranks end; {launch.RESUME}")
    return 2


def rank() -> str:
    """The number of this rank, as its launcher says."""
    return next((os.environ[name] for name in NUMBERS if name in os.environ), "?")


def _watch(process, reads) -> str:
    """Wait for the end of a rank. Returns what is wrong if it hangs."""
    beaten = polled = time.monotonic()
    beats, asked = b"", False
    while process.poll() is None:
        if select.select([reads], [], [], POLL)[0]:
            if not (part := os.read(reads, 4096)):
                process.wait()  # it has closed its end, and ends
                break
            beats, beaten = (beats + part)[-4096:], time.monotonic()
        now = time.monotonic()
        if now - polled > 10 * POLL:  # this process was stopped, and the rank too, as by Ctrl-Z
            beaten = now
        polled = now
        if not asked and launch.launcher_is_gone():
            process.send_signal(signal.SIGTERM)
            asked = True
        whole = beats.rpartition(b"\n")[0].rpartition(b"\n")[2]
        says = json.loads(whole) if whole else {"joined": False, "late": ""}
        if says["late"]:
            return f"hangs, or waits for a card that does: {says['late']}"
        if now - beaten > (SILENCE if says["joined"] else STARTING):
            return f"hangs: no sign of life for {now - beaten:.0f} seconds"
    return ""
