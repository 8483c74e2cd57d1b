"""Errors that are messages to the user: what was found, what was needed, what to do.

The command line prints them in one line and exits with code 2. Anything else that is raised is our own mistake and
keeps its traceback.
"""


class ConvlstmWxError(Exception):
    """Base of every error that is addressed to the user."""


class DataError(ConvlstmWxError):
    """The data file does not hold what was asked of it."""


class ConfigError(ConvlstmWxError):
    """An option, or a combination of options, cannot be used."""


class CheckpointError(ConvlstmWxError):
    """A checkpoint cannot be read, or does not fit the data or the model."""


class DeviceError(ConvlstmWxError):
    """The device that was asked for is not there."""


class TrainingError(ConvlstmWxError):
    """Training cannot go on; the checkpoints written so far are whole."""
