"""CenterFace in OpenVINO with its first layers run window by window, where the picture is.

What the first layers hand to each other is up to 61 MB a picture of 800x800. In windows it stays
in the caches, and the black borders of the letterbox, 30 % of the input for WIDER FACE, are
computed once and for all. The numbers are those of the whole network; `docs/performance.md` says
what it gains.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict, deque
from dataclasses import dataclass

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from cfdist.backends.local_part import LocalPart, find_local_part
from cfdist.backends.onnx_file import OnnxNetwork
from cfdist.backends.openvino_graph import (
    compile_model,
    giving_channels_last,
    run,
    taking_channels_last,
    taking_pictures,
)
from cfdist.backends.windows import Kind, Placement, WindowGrid, filled, window_grid
from cfdist.model import ModelSpec

# Windows under way for each of a slot's threads: one that it computes, and others that are ready
# before Python has taken its result.
_AHEAD = 4


@dataclass(frozen=True)
class CompiledWindow:
    """A window of one kind.

    Attributes:
        model: Takes (1, h, w, 3) u8 BGR, gives the tensors of the cut, each
            (1, rows, columns, channels) float32.
        pixels: The input rows, or columns, that it would take at row, or column, 0 of the grid.
    """

    model: ov.CompiledModel
    pixels: tuple[int, int]


class NetworkInWindows:
    """The network in two: its local part, for windows of each kind, and the rest.

    At moments more threads are ready to run than the device was given: the windows of one slot
    and the rest of another have threads of their own.

    Attributes:
        part: The local part.
        grid: Where its windows may be.
        scales: Rows of each tensor of the cut in one row of the grid.
        windows: What to run for each kind.
        at_once: Windows that each slot has under way.
        black: The tensors of the cut for a black picture, each (rows, columns, channels).
        rest: Compiled: takes the tensors of the cut and gives the network's outputs.
        batch: Pictures that the rest takes at once, at most.
    """

    def __init__(
        self,
        part: LocalPart,
        grid: WindowGrid,
        spec: ModelSpec,
        batch: int,
        threads: int,
        streams: int,
        precision: str,
    ) -> None:
        """Compile; see `split_network`."""
        self.batch = batch
        self.part = part
        self.grid = grid
        self.scales = [part.stride // tensor.reach.stride for tensor in part.cut.values()]
        self.windows = {
            kind: self._compile_window(placement, spec, threads, precision)
            for kind, placement in grid.examples().items()
        }
        self.at_once = _AHEAD * max(1, threads // streams)
        self.black = self._run_black((spec.height, spec.width))
        rest = taking_channels_last(part.rest(), batch)
        self.rest = compile_model(rest, threads, streams, precision)

    def room(self, pictures: int) -> list[NDArray[np.float32]]:
        """For each tensor of the cut, room for those of some pictures."""
        return [
            np.empty((pictures, *tensor.sides, tensor.channels), np.float32)
            for tensor in self.part.cut.values()
        ]

    def _compile_window(
        self, placement: Placement, spec: ModelSpec, threads: int, precision: str
    ) -> CompiledWindow:
        window = self.part.window(*self.grid.box(placement))
        sides = tuple(last - first for first, last in window.pixels)
        model = giving_channels_last(taking_pictures(window.model, spec, sides, batch=1))
        first, last = window.pixels[_axis(placement.kind)]
        start = placement.first * self.part.stride
        # A window is small: of several threads some would wait for others, so each has its own.
        return CompiledWindow(
            compile_model(model, threads, threads, precision), (first - start, last - start)
        )

    def _run_black(self, sides: tuple[int, int]) -> list[NDArray[np.float32]]:
        picture = np.zeros((*sides, 3), np.uint8)
        tensors = [room[0] for room in self.room(1)]
        runner = WindowRunner(self)
        rows, columns = self.grid.cells
        for placement in self.grid.cover((0, rows), (0, columns)):
            runner.start(picture, placement, tensors)
        runner.finish()
        return tensors


class WindowRunner:
    """Runs windows, some at a time."""

    def __init__(self, network: NetworkInWindows) -> None:
        self._network = network
        # By kind, and whether they write into memory of their own.
        self._idle: dict[tuple[Kind, bool], list[ov.InferRequest]] = defaultdict(list)
        self._under_way: deque = deque()

    def start(
        self, picture: NDArray[np.uint8], placement: Placement, tensors: list[NDArray[np.float32]]
    ) -> None:
        """Begin a window of an (H, W, 3) picture; its results go into their place in `tensors`.

        They are there after `finish`; until then the arrays must stay.
        """
        if len(self._under_way) == self._network.at_once:
            self._finish_first()
        kind = placement.kind
        window = self._network.windows[kind]
        first, last = (placement.first * self._network.part.stride + edge for edge in window.pixels)
        # Whole rows are taken from where they are and put where they belong. Rows that another
        # window writes as well are put there when that one has ended: OpenVINO may add to what it
        # has written before.
        piece = np.ascontiguousarray(picture[:, first:last] if _axis(kind) else picture[first:last])
        is_copied = bool(_axis(kind)) or placement.overlaps
        idle = self._idle[kind, is_copied]
        request = idle.pop() if idle else window.model.create_infer_request()
        request.set_input_tensor(ov.Tensor(piece[None], shared_memory=True))
        places = self._places(tensors, placement)
        if not is_copied:
            for i, place in enumerate(places):
                request.set_output_tensor(i, ov.Tensor(place[None], shared_memory=True))
        request.start_async()
        self._under_way.append((request, kind, is_copied, piece, places))

    def finish(self) -> None:
        """Wait for all windows that were begun."""
        while self._under_way:
            self._finish_first()

    def abandon(self) -> None:
        """Wait until nothing is written any more, and forget what was begun."""
        while self._under_way:
            request, *_ = self._under_way.popleft()
            request.cancel()
            with contextlib.suppress(RuntimeError):  # that it was cancelled
                request.wait()

    def _finish_first(self) -> None:
        request, kind, is_copied, _, places = self._under_way[0]
        request.wait()
        self._under_way.popleft()
        if is_copied:
            for output, place in zip(request.output_tensors, places, strict=True):
                place[...] = output.data[0]
        self._idle[kind, is_copied].append(request)

    def _places(
        self, tensors: list[NDArray[np.float32]], placement: Placement
    ) -> list[NDArray[np.float32]]:
        """A window's own rows and columns of the cut's tensors."""
        (top, bottom), (left, right) = self._network.grid.box(placement)
        return [
            tensor[top * scale : bottom * scale, left * scale : right * scale]
            for tensor, scale in zip(tensors, self._network.scales, strict=True)
        ]


class WindowsSlot:
    """The network in windows, some pictures at a time."""

    def __init__(self, network: NetworkInWindows) -> None:
        self._network = network
        self._runner = WindowRunner(network)
        self._room = network.room(network.batch)
        self._rest = network.rest.create_infer_request()

    def infer(self, inputs: NDArray[np.uint8]) -> list[NDArray]:
        """The network's outputs for (n, H, W, 3) u8 pictures, until the next call."""
        try:
            for i, picture in enumerate(inputs):
                self._start(picture, [room[i] for room in self._room])
            self._runner.finish()
        except BaseException:
            self._runner.abandon()
            raise
        return run(self._rest, [room[: len(inputs)] for room in self._room])

    def _start(self, picture: NDArray[np.uint8], tensors: list[NDArray[np.float32]]) -> None:
        """Begin the windows that see something, and fill in what sees only black."""
        network = self._network
        seen = [
            network.part.reach.seeing(interval, cells)
            for interval, cells in zip(filled(picture), network.grid.cells, strict=True)
        ]
        placements = network.grid.cover(*seen)
        for placement in placements:
            self._runner.start(picture, placement, tensors)
        axis = _axis(placements[0].kind) if placements else 0
        first = min((each.first for each in placements), default=0)
        last = max((each.first + network.grid.size for each in placements), default=0)
        for tensor, black, scale in zip(tensors, network.black, network.scales, strict=True):
            target, source = tensor.swapaxes(0, axis), black.swapaxes(0, axis)
            target[: first * scale] = source[: first * scale]
            target[last * scale :] = source[last * scale :]


def split_network(
    network: OnnxNetwork, spec: ModelSpec, batch: int, threads: int, streams: int, precision: str
) -> NetworkInWindows | None:
    """The network in windows, for 1 to `batch` pictures at once.

    Returns:
        `None` where it has no local part, or where the input is too small for windows.
    """
    part = find_local_part(network.model)
    grid = window_grid(part) if part else None
    if part is None or grid is None:
        return None
    return NetworkInWindows(part, grid, spec, batch, threads, streams, precision)


def _axis(kind: Kind) -> int:
    """On which axis windows of a kind are placed."""
    return 1 if kind == "columns" else 0
