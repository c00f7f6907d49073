"""Errors a user can act on. Each message says what was given, what was expected, and the fix."""

from __future__ import annotations


class FedsimError(Exception):
    """Base of every error that fedsim raises on purpose; the command line prints it without a traceback."""


class ConfigError(FedsimError, ValueError):
    """A setting is unknown, of the wrong type, or outside its range."""


class DataError(FedsimError):
    """A data set is missing, or a file of it is corrupt."""


class PartitionError(FedsimError, ValueError):
    """The requested partition cannot be made from this data set."""


class ModelError(FedsimError, ValueError):
    """The model or loss cannot be trained by this engine."""


class DivergenceError(FedsimError):
    """A client produced NaN or infinity."""


class CheckpointError(FedsimError):
    """A checkpoint is corrupt or belongs to another experiment."""


class RunError(FedsimError):
    """A run directory cannot be created, written or resumed."""
