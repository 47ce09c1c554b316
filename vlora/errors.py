"""Errors a user can act on: what was expected, what came, and the likely cure, in one line.

Each class is also the builtin a caller would expect, so ``except ValueError`` keeps working.
"""

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "IdentityError",
    "IncompatibleAdaptersError",
    "MissingDependencyError",
    "OutputError",
    "OutputExistsError",
    "PosteriorFormatError",
    "TrainingError",
    "VloraError",
]


class VloraError(Exception):
    """Base of every error that vlora raises on purpose; the command line prints it as one line."""


class ConfigError(VloraError, ValueError):
    """A configuration key or value is not usable."""


class DataError(VloraError, ValueError):
    """A data file, column or label is missing or out of range."""


class PosteriorFormatError(VloraError, ValueError):
    """A posterior folder is damaged, foreign, newer than this version, or does not fit its base model."""


class IncompatibleAdaptersError(VloraError, ValueError):
    """Adapters cannot be combined by the requested method."""


class IdentityError(VloraError, ArithmeticError):
    """A check of the arithmetic on the actual inputs failed; nothing was written."""


class CheckpointError(VloraError, ValueError):
    """A model checkpoint is missing, damaged, or does not fit the others."""


class TrainingError(VloraError, RuntimeError):
    """Training reached a state that cannot be used, such as a non-finite loss."""


class OutputExistsError(VloraError, FileExistsError):
    """The output folder already holds something that must not be overwritten."""


class OutputError(VloraError, OSError):
    """An output could not be written: no permission, no space, or no such place. Nothing was changed."""


class MissingDependencyError(VloraError, ImportError):
    """An optional package is needed for what was asked."""
