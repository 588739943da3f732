"""Metrics of other people beside the AP, which `eval.metrics` names."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cfdist.errors import UserError
from cfdist.extensions import load_object
from cfdist.widerface.ground_truth import PictureTruth
from cfdist.widerface.metric import Floats

KEY = "eval.metrics"

log = logging.getLogger(__name__)


class OwnMetrics:
    """Objects that learn of each picture once, in any order, as `WiderFaceMetric` does.

    Each is made without arguments and has `update_many(truths, boxes_xywh, scores)`, which takes
    what `WiderFaceMetric.update_many` takes, `merge(other)`, and `compute()`, which returns
    figures by name.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        """Make the metrics.

        Args:
            names: Their classes, each "module:name".

        Raises:
            UserError: a class is not there, or cannot be made.
        """
        self._metrics: dict[str, Any] = {}
        for name in names:
            kind = load_object(name, KEY)
            with _named(name):
                self._metrics[name] = kind()
            for method in ("update_many", "merge", "compute"):
                if not callable(getattr(self._metrics[name], method, None)):
                    raise UserError(f"{KEY}={name}: has no method {method}; see docs/extending.md")

    def update_many(
        self, truths: Sequence[PictureTruth], boxes_xywh: Sequence[Floats], scores: Sequence[Floats]
    ) -> None:
        """Show pictures to each metric; see `WiderFaceMetric.update_many`."""
        for name, metric in self._metrics.items():
            with _named(name):
                metric.update_many(truths, boxes_xywh, scores)

    def merge(self, other: OwnMetrics) -> None:
        """Take over the pictures of others of the same names."""
        for name, metric in self._metrics.items():
            with _named(name):
                metric.merge(other._metrics[name])

    def compute(self) -> dict[str, dict[str, float]]:
        """The figures: class -> name -> value.

        Raises:
            UserError: one of them is not a finite number.
        """
        found = {}
        for name, metric in self._metrics.items():
            with _named(name):
                figures = {str(key): float(value) for key, value in metric.compute().items()}
                if not all(map(math.isfinite, figures.values())):
                    raise ValueError(f"compute() gives {figures}, not finite numbers")
            found[name] = figures
        return found


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors of other people's code become one line that names it; the log has the traceback."""
    try:
        yield
    except Exception as error:
        log.exception("%s failed", name)
        raise UserError(
            f"{KEY}={name}: {type(error).__name__}: {error}; mend it, or leave it out"
        ) from error


def metric_notes(figures: dict[str, dict[str, float]]) -> list[str]:
    """What `OwnMetrics.compute` gave, as sentences."""
    return [
        f"{name}: {', '.join(f'{key} {value:.6g}' for key, value in values.items())}"
        for name, values in figures.items()
    ]
