"""Errors that a user can fix. Commands print the message and exit with code 2."""


class NeuroGenError(Exception):
    """Root of the errors below: the message says what is wrong, where, and what to do."""


class ConfigError(NeuroGenError, ValueError):
    """A setting, a flag, a shape or a token id that cannot be used."""


class DataError(NeuroGenError, ValueError):
    """Text that cannot be read, is not text, or is too short."""


class MissingText(DataError):
    """The named text does not exist."""


class BackendError(NeuroGenError, RuntimeError):
    """The machine cannot run the request."""


class OutOfMemory(BackendError):
    """A GPU has no memory left for an array. A command adds which of its flags reduce the memory."""


class CheckpointError(NeuroGenError, RuntimeError):
    """A checkpoint that is damaged, foreign, of another shape, or cannot be written."""


class TrainingError(NeuroGenError, RuntimeError):
    """A run that cannot continue, for example because its loss is NaN."""
