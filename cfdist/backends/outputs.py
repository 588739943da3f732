"""What a model file's outputs are: four head maps, or the three arrays of its own peaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from numpy.typing import NDArray

from cfdist.decode import PEAK_OUTPUTS, PEAK_VALUES, STRIDE, HeadMaps, Peaks, graph_peaks
from cfdist.errors import UserError
from cfdist.model import ModelSpec


def output_order(names: Sequence[str], spec: ModelSpec) -> tuple[int, ...]:
    """Where the outputs that count are among those of a file.

    The names of a graph that picks its own peaks decide, or else `spec.outputs` if the file has
    one of them, or else the file's own order. Where the file must have `spec.outputs`, only these
    decide. The last part of a name is enough, for an OM names its outputs
    `<node>:<index>:<name in the graph>`.

    Returns:
        Four indices in the order of `HeadMaps`, or three in that of `Peaks`.

    Raises:
        UserError: outputs are missing.
    """

    def find(wanted: Sequence[str]) -> dict[str, int]:
        """The first place of each name that is there."""
        places = {
            name: [i for i, there in enumerate(names) if f":{there}".endswith(f":{name}")]
            for name in wanted
        }
        return {name: found[0] for name, found in places.items() if found}

    peaks = find(PEAK_OUTPUTS)
    if not spec.needs_outputs and len(names) == len(peaks) == len(PEAK_OUTPUTS):
        return tuple(peaks.values())
    wanted = spec.outputs or ()
    found = find(wanted)
    missing = [name for name in wanted if name not in found and (found or spec.needs_outputs)]
    order = tuple(found.values()) or tuple(range(len(names)))
    if missing or len(order) != len(HeadMaps.CHANNELS):
        expected = listed(wanted) if missing else "four: heat map, size, offset, landmarks"
        raise UserError(
            f"model {spec.path}: its outputs are {listed(names)}, expected {expected}"
            f"{'; missing ' + listed(missing) if missing else ''} "
            "(other names: model.outputs=[heatmap,size,offset,landmarks], null takes the file's "
            "order)"
        )
    return order


def output_shapes(count: int, spec: ModelSpec) -> list[tuple[int, ...]]:
    """The shapes of one picture's outputs, four head maps or three arrays of peaks.

    Raises:
        UserError: the model picks peaks of its own where others are wanted.
    """
    if count == len(PEAK_OUTPUTS):
        if spec.top_k is None or (spec.peaks, spec.size) != ("maxima", "letterbox"):
            raise UserError(
                f"model {spec.path}: picks {'its own' if spec.top_k is None else spec.top_k} peaks "
                "of letterboxed pictures in its graph; for model.top_k=null, model.peaks=threshold "
                "or preprocess.size=own give a model that puts out head maps (job=export without "
                "export.peaks)"
            )
        return [(spec.top_k,), (spec.top_k,), (spec.top_k, PEAK_VALUES)]
    cells = (spec.height // STRIDE, spec.width // STRIDE)
    return [(channels, *cells) for channels in HeadMaps.CHANNELS]


def as_result(outputs: Sequence[NDArray[Any]]) -> HeadMaps | Peaks:
    """Outputs of n pictures, ordered and shaped as above, as head maps or as peaks."""
    if len(outputs) == len(PEAK_OUTPUTS):
        score, cell, values = outputs
        return graph_peaks(score, cell, values)
    return HeadMaps(*outputs)


def listed(names: Iterable[str]) -> str:
    """Names in quotes for a message, or "none"."""
    return ", ".join(repr(name) for name in names) or "none"
