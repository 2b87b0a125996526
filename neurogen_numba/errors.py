"""What can go wrong in a way that a user can mend. Commands print the message and exit with code 2."""


class NeuroGenError(Exception):
    """Root of the errors below: the message says what is wrong, where, and what to do."""


class ConfigError(NeuroGenError, ValueError):
    """A setting, a flag, a shape or a token id that cannot be used."""


class DataError(NeuroGenError, ValueError):
    """Text that cannot be read, is not text, or is too short."""


class MissingText(DataError):
    """There is no text where it is said to be."""


class BackendError(NeuroGenError, RuntimeError):
    """The machine cannot do what was asked of it."""


class OutOfMemory(BackendError):
    """A GPU has no room for an array. What to do about it depends on who asked: a command adds which of its flags would ask for less."""


class CheckpointError(NeuroGenError, RuntimeError):
    """A checkpoint that is damaged, foreign, of another shape, or cannot be written."""


class TrainingError(NeuroGenError, RuntimeError):
    """A run that cannot go on, such as one whose loss is no number any more."""
