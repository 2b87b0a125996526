"""`neurogen figures`: redraw the figures of a run from its files."""

from __future__ import annotations

import sys
from pathlib import Path

from .cli import Parser, add_backend_flag, backend_of, command
from .errors import BackendError, CheckpointError, ConfigError


def parser() -> Parser:
    more = "The brain is that of the last checkpoint, while it reads the text of the last sample."
    flags = Parser("figures", more)
    flags.add_argument("run", nargs="?", help="a run (default: the run trained last)")
    flags.add_argument("--out", type=Path, default=Path("runs"), help="where runs are kept")
    add_backend_flag(flags)
    return flags


def snapshot_of(run: Path, backend):
    """A BrainReport of a run's last sound checkpoint, from a zero state, after the text of the run's last sample; None if either is missing
    or damaged."""
    import numpy as np

    from .learning.brain_snapshot import brain_snapshot
    from .show import find, load
    from .storage import checkpoint
    from .ui.history import read_history

    samples = read_history(run).samples
    if not samples or not checkpoint.saved(run):
        return None
    try:
        model = load(find(str(run), run.parent), backend)
        ids = model.tokenizer.encode(samples[-1].prompt + (samples[-1].truth or samples[-1].text))
    except (CheckpointError, ConfigError) as error:  # no sound checkpoint, or a text that is not the model's
        print(f"neurogen figures: no figure of the brain: {error}", file=sys.stderr)
        return None
    if not len(ids):
        return None
    act = model.activity(model.config.training.segment, 1)
    model.brain.forward_logits(act, np.asarray(ids[: act.tokens], np.int32)[:, None])
    return brain_snapshot(model, act, model.optimizer.steps)


@command("figures")
def main(argv=None):
    args = parser().parse_args(argv)
    from .storage import run_folder
    from .ui.pictures import draw

    run = run_folder.find_run(args.run, args.out) if args.run else run_folder.latest_run(args.out)
    brain = snapshot_of(run, backend_of(args))
    try:
        files = draw(run, brain)
    except OSError as error:
        raise BackendError(f"no figures can be written in {run}: {error.strerror}; make room or change its permissions") from None
    print("\n".join(map(str, files)))
    if brain is None:
        print("No figure of the brain: the run has no checkpoint yet, or no sample of text.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
