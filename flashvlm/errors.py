"""What can go wrong in a way a user can mend: one class an exit code, one sentence a message."""


class FlashVLMError(Exception):
    """Any failure that the user should read as one sentence.

    `exit_code` is what the command line ends with: 1 anything else, 2 wrong usage, 3 the video cannot be read,
    4 the model is not available.
    """

    exit_code = 1


class UsageError(FlashVLMError, ValueError):
    """An argument that makes no sense, alone or with the others."""

    exit_code = 2


class VideoError(FlashVLMError):
    """The video is missing, empty, corrupt, or holds no picture."""

    exit_code = 3


class OutputError(FlashVLMError):
    """A file that was asked for cannot be written."""


class ModelError(FlashVLMError):
    """The model is not here and cannot be fetched, is incomplete, or is of a family that is not supported."""

    exit_code = 4
