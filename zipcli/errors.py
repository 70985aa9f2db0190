"""What can go wrong, the exit code each kind means, and the closed set of per-image reasons."""

from enum import IntEnum, StrEnum


class ExitCode(IntEnum):
    """Exit codes of every command; treat an unknown one as a failure."""

    DONE = 0
    BUG = 1
    USAGE = 2
    SOME_FAILED = 3
    MODEL = 4
    OUTPUT = 5
    LOCKED = 6
    HANGUP = 129
    INTERRUPTED = 130
    PIPE_CLOSED = 141
    TERMINATED = 143


class Reason(StrEnum):
    """Why one image failed or was skipped; the closed set written to the ledger."""

    EMPTY = "empty"
    UNREADABLE = "unreadable"
    VANISHED = "vanished"
    CHANGED_DURING_READ = "changed_during_read"
    NOT_A_FILE = "not_a_file"
    SYMLINK = "symlink"
    UNIDENTIFIED = "unidentified"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    MULTIFRAME = "multiframe"
    MODE_UNSUPPORTED = "mode_unsupported"
    BOMB_BYTES = "bomb_bytes"
    BOMB_PIXELS = "bomb_pixels"
    EXTENSION_MISMATCH = "extension_mismatch"
    DECODE_CRASH = "decode_crash"
    DECODE_TIMEOUT = "decode_timeout"
    MASK_SIZE = "mask_size"
    TRANSFORM_UNFIT = "transform_unfit"
    METHOD_UNFIT = "method_unfit"
    NONFINITE = "nonfinite"
    SUSPECT_OUTPUT = "suspect_output"
    OUT_OF_MEMORY = "out_of_memory"
    ENCODE_FAILED = "encode_failed"
    FOREIGN_OUTPUT = "foreign_output"
    NAME_UNSUPPORTED = "name_unsupported"
    COLLISION = "collision"
    NOT_STORED = "not_stored"
    SAMPLE_INCOMPLETE = "sample_incomplete"
    WORKER_CRASH = "worker_crash"


def shown(text: str) -> str:
    """Make hostile text, such as a file name, harmless within a message.

    Control characters, line breaks and bytes that are no text become escapes: a name must neither
    recolour a terminal nor forge a line of a log, and a message must be valid Unicode.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


class ZipcliError(Exception):
    """Base of every error that a user can do something about."""

    exit_code = ExitCode.BUG


class ConfigError(ZipcliError, ValueError):
    """A setting is wrong, or settings contradict each other."""

    exit_code = ExitCode.USAGE


class InputError(ZipcliError):
    """One image cannot be purified; `reason` says why in one word of the closed set."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, reason: Reason, message: str) -> None:
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason


class ModelError(ZipcliError):
    """The model is missing, damaged or not one that we can use."""

    exit_code = ExitCode.MODEL


class ClassifierError(ZipcliError):
    """The classifier is missing, crashed, did not answer in time or answered nonsense."""

    exit_code = ExitCode.MODEL


class OutputError(ZipcliError):
    """The output folder cannot be written; the run stops and can be resumed."""

    exit_code = ExitCode.OUTPUT


class LockedError(ZipcliError):
    """Another run owns the output folder."""

    exit_code = ExitCode.LOCKED


class StoppedError(ZipcliError):
    """A signal asked the run to stop; what is written is complete."""

    def __init__(self, exit_code: ExitCode) -> None:
        """Remember which signal, as the exit code it stands for."""
        super().__init__("stopped; what is written is complete")
        self.exit_code = exit_code


class MemoryExhaustedError(ZipcliError):
    """A batch needs more memory than the device or the machine has."""

    exit_code = ExitCode.SOME_FAILED


class DeviceLostError(ZipcliError):
    """The device has failed and answers nothing any more; another process may find it well."""


class WorkerLostError(ZipcliError):
    """A process that purified has ended without being asked; another may fare better."""


class NonFiniteError(ZipcliError):
    """A method produced NaN or infinity; `images` are the indices within the batch."""

    exit_code = ExitCode.SOME_FAILED

    def __init__(self, where: str, images: tuple[int, ...]) -> None:
        """Say where it happened first, such as "at step 3 (timestep 800)"."""
        super().__init__(f"NaN or infinity {where}, images {list(images)}")
        self.images = images
