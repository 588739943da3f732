"""What a run takes of the machine's memory, held against what there is."""

from __future__ import annotations

from cfdist.backends.base import Backend
from cfdist.distributed.chunks import chunk_of, largest_chunk
from cfdist.distributed.cluster import ACTIVATION_BYTES_PER_PIXEL, AHEAD
from cfdist.errors import UserError
from cfdist.machine import available_memory
from cfdist.model import ModelSpec

# Bytes an input pixel: three of a letterboxed picture; four times that as float32; the four
# heads' float32 maps, 15 channels for each 4x4 pixels.
_PICTURE, _FLOATS, _HEADS = 3, 12, 15 * 4 / 16


def needed_bytes(spec: ModelSpec, backend: type[Backend], kind: str, count: int, slots: int) -> int:
    """About what the devices of a run take on this machine, their models' weights left out.

    Args:
        spec: The model.
        backend: What runs it.
        kind: "cpu", "gpu" or "npu"; the memory of accelerators is their own.
        count: Devices.
        slots: Inferences each takes at once.
    """
    pixels = spec.height * spec.width
    chunk = largest_chunk(chunk_of(spec.batch, backend.group))
    buffers = (slots + AHEAD) * chunk * pixels * _PICTURE
    if backend.is_simulated:
        return int(count * buffers)
    batches = slots * backend.group * spec.batch * pixels * (_FLOATS + _HEADS)
    if kind == "cpu":
        batches += slots * spec.batch * pixels * ACTIVATION_BYTES_PER_PIXEL
    return int(count * (buffers + batches))


def refuse_too_large(
    spec: ModelSpec, backend: type[Backend], kind: str, count: int = 1, slots: int = 1
) -> None:
    """Refuse a batch that this machine's free memory cannot hold.

    Raises:
        UserError: saying what is needed and what there is.
    """
    needed = needed_bytes(spec, backend, kind, count, slots)
    free = available_memory()
    if needed > free:
        devices = f"{count} device{'s' if count > 1 else ''}"
        raise UserError(
            f"model.batch={spec.batch}: {devices} with {slots} of these batches at once need about "
            f"{needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free; choose a smaller "
            "model.batch, fewer devices or backend.streams=1"
        )
