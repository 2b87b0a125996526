"""A brain of a few dozen neurons, which learns in milliseconds, for tests of what is around the brain."""

from neurogen_numba.config import Brain, Config, Module, Text, Training

BRAIN = Brain(
    thalamus=Module(24, lateral=4),
    wernicke=Module(48, lateral=4),
    hippocampus=Module(24, lateral=4),
    pfc=Module(32, outputs=8, lateral=4),
    basal_ganglia=Module(16, lateral=4),
    broca=Module(32, lateral=4),
    embedding=16,
    fan_in=16,
    bundle=16,
    feedback=4,
    delays=6,
    hypercolumn=16,
    memory_heads=2,
    memory_width=8,
    memory_fan_in=8,
    chunk=8,
)


def config(text: dict | None = None, brain: dict | None = None, **training) -> Config:
    """The tiny brain with characters as tokens; `training` are fields of config.Training."""
    settings = {"batch": 4, "segment": 16, "warmup": 5, "log_interval": 1, "eval_tokens": 100, "viz_interval": 0, **training}
    base = Config("tiny", BRAIN, Training(segment=BRAIN.chunk), Text(tokenizer="char"))
    return base.replace(training=settings, text=text or {}, brain=brain or {})  # together: one may need another
