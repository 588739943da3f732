"""What an error that came through Ray means: a dead process, bad input, or a fault of ours."""

from __future__ import annotations

import re

from cfdist.errors import DiskFullError, ExitCode, StoppedError, UserError

_MOST_CHARACTERS = 300  # of what a device says


def is_death(error: Exception) -> bool:
    """Whether the actor that was called is gone: it died, is out of reach, or Ray ended it.

    An error inside a call that another actor's death caused is no death of the called one.
    """
    import ray

    # Ray's error for a process that it ended to save memory is no `RayActorError`.
    deaths = ray.exceptions.RayActorError | ray.exceptions.OutOfMemoryError
    return isinstance(error, deaths) and not isinstance(error, ray.exceptions.RayTaskError)


def is_lost_block(error: Exception) -> bool:
    """Whether a block of the work is gone, as when its node is; the device is fine."""
    import ray

    cause = getattr(error, "cause", None) or error
    return isinstance(cause, ray.exceptions.ObjectLostError)


def words_of(error: Exception) -> str:
    """What a device says of its failure, on one line."""
    import ray

    if is_death(error):
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            return str(user_error(error))
        found = re.search(r"exit code (\d+)|signal \w+", str(error), re.IGNORECASE)
        return f"its process died{f' ({found[0]})' if found else ''}"
    cause = getattr(error, "cause", None) or error
    text = " ".join(str(cause).split())[:_MOST_CHARACTERS]
    is_plain = isinstance(cause, UserError | TimeoutError | ValueError) and text
    return text if is_plain else f"{type(cause).__name__}: {text}"


def user_error(error: Exception) -> Exception:
    """The `UserError` inside an error that came through Ray, else the error itself.

    Ray wraps what a task or an actor raises, and Ray Data wraps it once more.
    """
    import ray

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            # Its class may be one that Ray made.
            kind = DiskFullError if isinstance(cause, DiskFullError) else UserError
            return kind(str(cause.args[0] if cause.args else cause))
        if isinstance(cause, ray.exceptions.OutOfDiskError):
            return DiskFullError(
                "Ray's object store: the disk of Ray's temporary folder is full; make room there, "
                "or name another folder: RAY_TMPDIR=..."
            )
        if isinstance(cause, ray.exceptions.OutOfMemoryError):
            return UserError(
                "out of memory: Ray ended a process because its machine has hardly any memory "
                "left; choose a smaller model.batch, fewer devices or backend.streams=1"
            )
        cause = getattr(cause, "cause", None) or cause.__cause__
    return error


def reducer_lost() -> StoppedError:
    """The error of a run whose reducer is dead for good."""
    return StoppedError(
        "the reducer, which gathers the detections, died too often to go on; the run's log and "
        "Ray's logs say more",
        ExitCode.INTERNAL,
    )
