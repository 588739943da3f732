"""How much memory the devices of a run take, and whether the machine has it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence

from cfdist.backends.model import BackendModel
from cfdist.devices.base import AHEAD, largest_chunk
from cfdist.errors import UserError
from cfdist.machine import available_memory

# Bytes an input pixel: 3 of a letterboxed picture; 4 times that as float32; the four heads' float32
# maps, 15 channels for each 4x4 pixels.
_PICTURE, _FLOATS, _HEADS = 3, 12, 15 * 4 / 16
_DECODED = 4  # a picture as it is decoded, before it is stretched

# The words of runtimes that run out of memory: CUDA, C++, ONNX Runtime, PyTorch on the CPU.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|failed to allocate|can't allocate memory", re.IGNORECASE
)


def activation_bytes(model: BackendModel, threads: int = 1) -> int:
    """What the network's activations take in one CPU stream of this many threads, bytes."""
    spec = model.spec
    pictures = model.backend_class.pictures_at_once(spec.batch, threads)
    return pictures * spec.height * spec.width * model.capabilities.activation_bytes_per_pixel


def needed_bytes(model: BackendModel, count: int, streams: int, threads: int = 1) -> int:
    """About how many bytes the devices of a run take on this machine, without the weights.

    The memory of accelerators is their own and does not count. `streams` and `threads` are those
    of each device. Pictures at their own size count as the largest one.
    """
    spec = model.spec
    pixels = spec.height * spec.width
    group = model.capabilities.group
    is_own = spec.size == "own"
    chunk = spec.batch if is_own else largest_chunk(spec.batch * group)
    buffers = (streams + AHEAD) * chunk * pixels * (_PICTURE + _DECODED * is_own)
    if model.is_simulated:
        return int(count * buffers)
    at_once = streams * group * spec.batch
    # The input tensors' memory; on a CPU, chunks do not grow to fill it.
    made = at_once if model.kind == "cpu" else (streams + 1) * chunk
    batches = pixels * (made * _FLOATS + at_once * _HEADS)
    if model.kind == "cpu":
        batches += streams * activation_bytes(model, threads // streams)
    return int(count * (buffers + batches))


def stream_bytes(model: BackendModel) -> int:
    """About how many bytes one more stream, with a thread of its own, takes on a CPU."""
    one, two = (needed_bytes(model, 1, streams, threads=streams) for streams in (1, 2))
    return two - one


def refuse_too_large(
    models: Sequence[BackendModel],
    count: int = 1,
    streams: int = 1,
    threads: int = 1,
    free: int | None = None,
    host: str = "",
    picture: str = "",
) -> None:
    """Refuse a batch that the free memory of a machine cannot hold; each device runs all models.

    Args:
        models: What each device runs.
        count: Devices on that machine.
        streams: Of each device.
        threads: Of each device.
        free: The machine's memory, bytes; `None`: what is free on this one.
        host: The machine's name in the message; empty: this one.
        picture: At the pictures' own size, the largest one's name.

    Raises:
        UserError: it says what is needed and what is free.
    """
    needed = sum(needed_bytes(model, count, streams, threads) for model in models)
    free = available_memory() if free is None else free
    if needed > free:
        devices = f"{count} device{'s' if count > 1 else ''}"
        where = f" on {host}" if host else ""
        spec = models[0].spec
        largest, advice = "", ""
        if spec.size == "own":
            largest = f", the largest picture, {picture}, of {spec.width}x{spec.height},"
            advice = ", smaller preprocess.scales or preprocess.size=letterbox"
        key = f"model.batch={spec.batch}"
        if streams > spec.batch:  # the larger one is what asks for too much
            key = f"backend.streams={streams}, {key}"
        raise UserError(
            f"{key}: {devices} with {streams} of these batches at once{largest} need about "
            f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free{where}; choose "
            f"a smaller model.batch, fewer devices or backend.streams=1{advice}"
        )


@contextlib.contextmanager
def memory_as_user_error(batch: int) -> Iterator[None]:
    """Turn a runtime's lack of memory in the `with` block into bad input.

    Raises:
        UserError: in place of the runtime's own error.
    """
    try:
        yield
    except Exception as error:  # ONNX Runtime's are no RuntimeError
        said = [line for line in str(error).splitlines() if _OUT_OF_MEMORY.search(line)]
        if not said and not isinstance(error, MemoryError):
            raise
        reason = said[0] if said else "out of memory"
        raise UserError(
            f"model.batch={batch}: does not fit the device's memory ({reason}); choose a smaller "
            "model.batch, or fewer backend.streams"
        ) from None
