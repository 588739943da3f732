"""The JSON files beside the folders of .bin files: what they hold, and how long inference took.

A record is beside its folder and not in it, because ais_bench takes every file of its input folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from cfdist.errors import UserError
from cfdist.files import write_text
from cfdist.model import ModelSpec
from cfdist.preprocess import InputContract
from cfdist.workflow.files import SUFFIX


@dataclass(frozen=True)
class Record:
    """What a folder of .bin files holds."""

    ENDING: ClassVar[str]

    @classmethod
    def path(cls, folder: Path) -> Path:
        """Where a folder's record is, if it has one."""
        return folder.with_name(folder.name + cls.ENDING)

    def write(self, folder: Path) -> None:
        """Write the record of a folder."""
        write_text(self.path(folder), json.dumps(asdict(self), indent=2) + "\n")

    def check(self, folder: Path, keys: Sequence[str], source: str) -> dict[str, Any] | None:
        """Refuse a folder that another run made; a folder without a record passes.

        Args:
            folder: The folder of .bin files; `self` is the record that this run would write.
            keys: The attributes that have to agree.
            source: The configuration key that named the folder, for messages.

        Returns:
            The content of the folder's record, `None` without one.

        Raises:
            UserError: the record differs, or is no record.
        """
        path = self.path(folder)
        try:
            content = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove it") from None
        wanted = json.loads(json.dumps(asdict(self)))
        try:
            there: dict[str, Any] = json.loads(content)
            if not set(wanted) <= set(there):
                raise ValueError("attributes are missing")
            differing = [key for key in keys if there[key] != wanted[key]]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}: not the record of a folder of {SUFFIX} files; remove it if the files "
                "are good"
            ) from None
        if differing:
            parts = [f"{key} {there[key]}, this run has {wanted[key]}" for key in differing]
            raise UserError(
                f"{source}={folder}: files of another run ({'; '.join(parts)}; says {path.name}); "
                "use that run's settings, choose another folder, or remove the folder and its "
                "record"
            )
        return there


@dataclass(frozen=True)
class InputRecord(Record):
    """What a folder of input tensors holds: `<folder>_preprocess.json`.

    Attributes:
        input: "f32" or "u8".
        height: Rows, pixels.
        width: Columns, pixels.
        color: Order of the channels.
        scale: The factor that u8 values were multiplied by.
        mean: Subtracted after that, per channel.
        std: Divided by after that, per channel.
        pictures: How many pictures the folder was made for.
        fingerprint: `Manifest.fingerprint` of these pictures.
    """

    input: str
    height: int
    width: int
    color: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: int
    fingerprint: str

    ENDING: ClassVar[str] = "_preprocess.json"

    @classmethod
    def of(cls, contract: InputContract, pictures: int = 0, fingerprint: str = "") -> InputRecord:
        """The record of input tensors that hold a contract's input."""
        form = "f32" if contract.dtype == "float32" else "u8"
        c = contract
        return cls(form, c.height, c.width, c.color, c.scale, c.mean, c.std, pictures, fingerprint)


@dataclass(frozen=True)
class OutputRecord(Record):
    """What a folder of raw outputs holds: `<folder>_infer.json`.

    Attributes:
        model: The model's file name.
        sha256: Its digest.
        convention: How its head maps become boxes.
        height: Input rows, pixels.
        width: Input columns, pixels.
        fingerprint: That of the pictures, if the input tensors had a record.
    """

    model: str
    sha256: str
    convention: str
    height: int
    width: int
    fingerprint: str | None

    ENDING: ClassVar[str] = "_infer.json"

    @classmethod
    def of(cls, spec: ModelSpec, fingerprint: str | None) -> OutputRecord:
        """The record of a model's outputs."""
        return cls(
            spec.path.name, spec.sha256, spec.convention, spec.height, spec.width, fingerprint
        )


def summary_path(folder: Path) -> Path:
    """Where `python -m ais_bench` leaves the summary of a folder of raw outputs."""
    return folder.with_name(f"{folder.name}_summary.json")


def summary(device_times_ms: Iterable[Sequence[float]], batch: int) -> dict[str, Any]:
    """The content of `<name>_summary.json`, as `python -m ais_bench` leaves it.

    Args:
        device_times_ms: Time of each execution, milliseconds, for each device.
        batch: Pictures an execution.

    Returns:
        `NPU_compute_time` in milliseconds over all devices, and `throughput`, pictures a second:
        1000 * batch / mean, summed over the devices.
    """
    devices = [np.asarray(times, float) for times in device_times_ms if len(times)]
    times = np.concatenate(devices)
    return {
        "NPU_compute_time": {
            "min": float(times.min()),
            "max": float(times.max()),
            "mean": float(times.mean()),
            "median": float(np.median(times)),
            "percentile(99%)": float(np.percentile(times, 99)),
        },
        "throughput": float(sum(1000 * batch / times.mean() for times in devices)),
    }
