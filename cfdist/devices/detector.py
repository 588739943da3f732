"""The device of `job=evaluate`: pictures in, detections back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from cfdist.backends.base import DeviceSettings
from cfdist.backends.model import BackendModel
from cfdist.decode import decode_detections, join_peaks, merge_views, to_peaks
from cfdist.detections import Detections
from cfdist.devices.base import AHEAD, DeviceReport, largest_chunk
from cfdist.devices.memory import memory_as_user_error
from cfdist.devices.reader import OwnSizeReader, Reader, ReadPictures, Source
from cfdist.devices.runner import Inferred, Runner
from cfdist.model import ModelSpec
from cfdist.preprocess import UNREADABLE


class Detector:
    """Reads, infers and decodes; keeps the `Device` protocol."""

    def __init__(self, model: BackendModel, settings: DeviceSettings, readers: int) -> None:
        """Remember what to load, and how many reader threads to start."""
        self._model = model
        self._settings = settings
        self._readers = readers

    def warm_up(self) -> None:
        """See `Device.warm_up`."""
        self._runner, self._reader = load(self._model, self._settings, self._readers)
        self._runner.warm_up()

    def process(self, chunk: Sequence[Source]) -> list[Detections]:
        """Detect the faces of some pictures, at most `largest_chunk` of them.

        Returns:
            One record a picture; of the pictures that are read at once, those that cannot be read
            come last.
        """
        found: list[Detections] = []
        spec = self._model.spec
        for pictures in self._reader.portions(chunk, spec.views):
            inferred = self._runner.infer(pictures.letterboxed)
            found += decode_pictures(pictures, inferred, spec)
        return merge_views(found, spec)

    def report(self) -> DeviceReport:
        """See `Device.report`."""
        return report_of(self._runner, self._reader, self._model.spec)

    def close(self) -> None:
        """See `Device.close`."""
        self._reader.close()
        self._runner.close()


AnyReader = Reader | OwnSizeReader


def pictures_at_once(spec: ModelSpec, group: int) -> int:
    """How many pictures a runner is given at most, on a device that takes `group` batches."""
    return spec.batch if spec.size == "own" else largest_chunk(spec.batch * group)


def load(
    model: BackendModel, settings: DeviceSettings, readers: int, group: int | None = None
) -> tuple[Runner, AnyReader]:
    """A model, and a reader of its pictures.

    The device is given `group` batches at once, by default the backend's own number. For
    letterboxed pictures the reader has as many buffers as the device holds chunks.

    Raises:
        UserError: the model does not fit the device or the run.
    """
    spec = model.spec
    rows = pictures_at_once(spec, group or model.capabilities.group)
    runner = Runner(model, settings, rows)
    reader: AnyReader
    if spec.size == "own":
        reader = OwnSizeReader(readers, rows, spec.most_pixels, runner.backend.takes_size)
    else:
        with memory_as_user_error(spec.batch):
            reader = Reader((spec.width, spec.height), readers, rows, settings.streams + AHEAD)
    reader.activity = runner.activity
    return runner, reader


def report_of(runner: Runner, reader: AnyReader, spec: ModelSpec) -> DeviceReport:
    """What a runner and its reader have done; a picture counts once, in however many views."""
    report = runner.report()
    pictures = report.pictures // len(spec.views)
    return replace(report, pictures=pictures, decoded=reader.decoded)


def decode_pictures(
    pictures: ReadPictures, inferred: Inferred, spec: ModelSpec
) -> list[Detections]:
    """The detections of pictures that a model has seen; of their pixels only the shape is used.

    Returns:
        One record a picture, in order, then those of `pictures.failures`.
    """
    height, width = pictures.letterboxed.shape[1:3]
    spec = replace(spec, height=height, width=width)
    peaks = join_peaks([to_peaks(one, spec) for one in inferred.outputs])
    found = [
        replace(one, damage=pictures.damages[one.id]) if one.id in pictures.damages else one
        for one in decode_detections(pictures.keys, pictures.sizes, peaks, spec, pictures.view)
    ]
    for i in np.flatnonzero(~inferred.is_finite):
        found[i] = Detections(pictures.keys[i], error=inferred.error, is_doubtful=True)
    for key, reason in pictures.failures:
        # A file that cannot be read here may be there for another host.
        is_doubtful = reason.startswith(UNREADABLE)
        damage = pictures.damages.get(key)
        found.append(Detections(key, error=reason, damage=damage, is_doubtful=is_doubtful))
    return found
