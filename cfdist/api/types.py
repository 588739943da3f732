"""What the functions for other programs return."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cfdist.detecting.files import LINES
from cfdist.report.results import verdict
from cfdist.storage import uri_of

_R = TypeVar("_R", bound="Run")


@dataclass(frozen=True)
class AveragePrecision:
    """The APs by one protocol, fractions."""

    easy: float
    medium: float
    hard: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended.

    Attributes:
        output_dir: The run's folder; its URI if that was given.
        exit_code: What the command line would have ended with; 0: all is well.
        reason: Why that is not 0, one line.
        pictures: The pictures that did not fail.
        failures: Picture -> why it failed.
        notes: What a reader of the figures should know.
        results: The content of `results.json`.
    """

    output_dir: Path | str
    exit_code: int
    reason: str | None
    pictures: int
    failures: Mapping[str, str]
    notes: tuple[str, ...]
    results: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls: type[_R], folder: Path, results: Mapping[str, Any]) -> _R:
        """The run in a folder, by the content of its `results.json`."""
        code, reason = verdict(dict(results))
        return cls(
            output_dir=uri_of(folder) or folder,
            exit_code=int(code),
            reason=reason,
            pictures=results["pictures"]["done"],
            failures={one["picture"]: one["reason"] for one in results["failures"]},
            notes=tuple(results["notes"]),
            results=results,
            **cls._figures(folder, results),
        )

    @classmethod
    def _figures(cls, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only this kind of run has."""
        return {}


@dataclass(frozen=True, kw_only=True)
class Score(Run):
    """What `score` found.

    Attributes:
        ap: Protocol ("official", "guide") -> its APs, the chosen protocol first, then those with
            quirks ("official with no_pixel"); empty if no model ran (backend=simulated).
        test: How the pictures were tested: their size, the peaks, the suppression. APs can be
            compared only where it is the same; `None` where no model ran here.
    """

    ap: Mapping[str, AveragePrecision]
    test: str | None

    @classmethod
    def _figures(cls, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        return {"ap": _by_protocol(results["ap"]), "test": results.get("test")}


@dataclass(frozen=True, kw_only=True)
class Evaluation(Score):
    """What `evaluate` found.

    Attributes:
        pictures_per_second: Without start and end; `None` if the run was too short to say.
        end_to_end_pictures_per_second: With everything, from the call on.
    """

    pictures_per_second: float | None
    end_to_end_pictures_per_second: float

    @classmethod
    def _figures(cls, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        rates = results["throughput"]
        return {
            **super()._figures(folder, results),
            "pictures_per_second": rates["steady"],
            "end_to_end_pictures_per_second": rates["end_to_end"],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison(Run):
    """What `compare` found.

    Attributes:
        within_tolerance: Whether no tolerance (`compare.ap`, `.boxes`, `.cosine`) is passed.
        reference: Protocol -> the reference's APs; none with `compare.layers=true`.
        candidate: Protocol -> the candidate's.
        test: How the pictures were tested, see `Score`.
    """

    within_tolerance: bool
    reference: Mapping[str, AveragePrecision]
    candidate: Mapping[str, AveragePrecision]
    test: str | None

    @classmethod
    def _figures(cls, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        found = results["comparison"]
        sides = {
            side: _by_protocol(found[side].get("ap", {})) for side in ("reference", "candidate")
        }
        test = results.get("test")
        return {"within_tolerance": found["within_tolerance"], "test": test, **sides}


@dataclass(frozen=True)
class Face:
    """A face in a picture, in pixels of the picture as viewers show it.

    Attributes:
        box: x1 y1 x2 y2.
        score: 0 to 1.
        landmarks: x y of the eyes, the nose and the mouth's corners.
    """

    box: tuple[float, float, float, float]
    score: float
    landmarks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Detection(Run):
    """What `detect` found.

    Attributes:
        faces: Picture -> its faces, by falling score; pictures that failed are left out.
    """

    faces: Mapping[str, tuple[Face, ...]]

    @classmethod
    def _figures(cls, folder: Path, results: Mapping[str, Any]) -> dict[str, Any]:
        faces = {}
        # A name may hold what splitlines() takes for an end of a line.
        for line in (folder / LINES).read_bytes().splitlines():
            found = json.loads(line)
            if found["faces"] is not None:
                faces[found["path"]] = tuple(map(_face, found["faces"]))
        return {"faces": faces}


def _face(found: Mapping[str, Any]) -> Face:
    points = tuple((x, y) for x, y in found["landmarks"])
    left, top, right, bottom = found["box"]
    return Face((left, top, right, bottom), found["score"], points)


def _by_protocol(ap: Mapping[str, Mapping[str, float]]) -> dict[str, AveragePrecision]:
    return {protocol: AveragePrecision(**values) for protocol, values in ap.items()}
