"""What a run takes of the machine's memory, held against what there is."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from cfdist.backends.base import Backend
from cfdist.distributed.chunks import largest_chunk
from cfdist.distributed.cluster import AHEAD
from cfdist.errors import UserError
from cfdist.machine import available_memory
from cfdist.model import ModelSpec

# Bytes an input pixel: three of a letterboxed picture; four times that as float32; the four
# heads' float32 maps, 15 channels for each 4x4 pixels.
_PICTURE, _FLOATS, _HEADS = 3, 12, 15 * 4 / 16

# How runtimes say that memory is short: CUDA, C++, ONNX Runtime, PyTorch on the CPU.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|bad_alloc|failed to allocate|can't allocate memory", re.IGNORECASE
)


def activation_bytes(spec: ModelSpec, backend: type[Backend], threads: int = 1) -> int:
    """What the network's activations take of the machine's memory in a CPU slot of some threads."""
    pictures = backend.pictures_at_once(spec.batch, threads)
    return pictures * spec.height * spec.width * backend.capabilities.activation_bytes_per_pixel


def needed_bytes(
    spec: ModelSpec,
    backend: type[Backend],
    kind: str,
    count: int,
    slots: int,
    threads: int = 1,
) -> int:
    """About what the devices of a run take on this machine, their models' weights left out.

    Args:
        spec: The model.
        backend: What runs it.
        kind: "cpu", "gpu" or "npu"; the memory of accelerators is their own.
        count: Devices.
        slots: Inferences each takes at once.
        threads: CPU threads each has for them.
    """
    pixels = spec.height * spec.width
    chunk = largest_chunk(spec.batch * backend.capabilities.group)
    buffers = (slots + AHEAD) * chunk * pixels * _PICTURE
    if backend.capabilities.is_simulated:
        return int(count * buffers)
    at_once = slots * backend.capabilities.group * spec.batch
    # The device's input buffers; on a CPU, chunks do not grow to fill them.
    made = at_once if kind == "cpu" else (slots + 1) * chunk
    batches = pixels * (made * _FLOATS + at_once * _HEADS)
    if kind == "cpu":
        batches += slots * activation_bytes(spec, backend, threads // slots)
    return int(count * (buffers + batches))


def slot_bytes(spec: ModelSpec, backend: type[Backend]) -> int:
    """About what one more slot, with a thread of its own, takes on a CPU."""
    one, two = (needed_bytes(spec, backend, "cpu", 1, slots, threads=slots) for slots in (1, 2))
    return two - one


def refuse_too_large(
    spec: ModelSpec,
    backend: type[Backend],
    kind: str,
    count: int = 1,
    slots: int = 1,
    threads: int = 1,
    freeable: int = 0,
    besides: int = 0,
) -> None:
    """Refuse a batch that this machine's free memory cannot hold.

    Args:
        spec: The model.
        backend: What runs it.
        kind: "cpu", "gpu" or "npu".
        count: Devices.
        slots: Inferences each takes at once.
        threads: CPU threads each has for them.
        freeable: Bytes that are in use and can be given up.
        besides: Bytes that the same devices take for another model.

    Raises:
        UserError: saying what is needed and what there is.
    """
    needed = needed_bytes(spec, backend, kind, count, slots, threads) + besides
    free = available_memory() + freeable
    if needed > free:
        devices = f"{count} device{'s' if count > 1 else ''}"
        raise UserError(
            f"model.batch={spec.batch}: {devices} with {slots} of these batches at once need about "
            f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; choose a smaller "
            "model.batch, fewer devices or backend.streams=1"
        )


@contextlib.contextmanager
def memory_as_user_error(batch: int) -> Iterator[None]:
    """A device that has no room for the batch is no fault of the program.

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
