"""WIDER FACE prediction files: one text file a picture, `<event>/<stem>.txt`.

    <event>/<stem>.jpg
    <number of lines that follow>
    x y w h score
    ...

They are written in one of two styles (`STYLES`): the benchmark's own, and that of the CenterFace
evaluation script, which is coarser and adds one to the sizes. The rows made here hold exactly the
numbers that their text is read back as, so predictions in memory and in files give the same AP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.files import read_file
from cfdist.widerface.manifest import event_files

COLUMNS = 5  # x y w h score


@dataclass(frozen=True)
class Style:
    """How rows are made of boxes and printed.

    Attributes:
        size_offset: added to x2 - x1 and y2 - y1, in pixels.
        box_decimals: decimals of x y w h.
        score_decimals: decimals of the score.
    """

    size_offset: int
    box_decimals: int
    score_decimals: int


STYLES = {
    "official": Style(size_offset=0, box_decimals=3, score_decimals=6),
    "guide": Style(size_offset=1, box_decimals=1, score_decimals=3),
}


def rows(
    boxes_xyxy: NDArray[np.float32], scores: NDArray[np.float32], style: Style
) -> NDArray[np.float64]:
    """What goes into a prediction file, rounded as its text is.

    Args:
        boxes_xyxy: (n, 4) float32, x1 y1 x2 y2 in picture pixels, below 1e9.
        scores: (n,) float32.
        style: one of `STYLES`.

    Returns:
        (n, 5) float64, x y w h score, in the order given. Reading their text gives the same bits.

    Raises:
        ValueError: shapes do not fit, or a number is not finite.
    """
    boxes = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
    scores = np.asarray(scores, np.float64)
    if scores.shape != (len(boxes),):
        raise ValueError(f"{len(boxes)} boxes, scores of shape {scores.shape}")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError("a box or score is not finite")
    table = np.empty((len(boxes), COLUMNS))
    table[:, :2] = boxes[:, :2]
    table[:, 2:4] = boxes[:, 2:] - boxes[:, :2] + style.size_offset
    # x * 10**d of a float32 x is exact in float64, so round sees the same ties as the formatter;
    # k / 10**d is then the double nearest to the decimal number, which is what reading it gives.
    table[:, :4] = np.round(table[:, :4], style.box_decimals)
    table[:, 4] = np.round(scores, style.score_decimals)
    return table


def prediction_text(picture_id: str, table: NDArray[np.float64], style: Style) -> str:
    """The whole prediction file of one picture, for a table made by `rows`."""
    line = f"%.{style.box_decimals}f " * 4 + f"%.{style.score_decimals}f\n"
    # One `%` for the whole table takes half the time of one for each row.
    lines = (line * len(table)) % tuple(table.reshape(-1).tolist())
    return f"{picture_id}.jpg\n{len(table)}\n{lines}"


def read_predictions_file(path: Path | str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read one prediction file, whoever wrote it.

    The picture is known by the file's name, so the header line may say anything. The count may be
    right, or 1 whatever follows (the CenterFace script's habit), or too low. If it is higher than
    the number of lines that follow, the file was cut short. A file of 0 bytes holds no predictions.

    Returns:
        boxes (n, 4) float64, x y w h in picture pixels, and scores (n,) float64, by falling score;
        equal scores in the order of the file.

    Raises:
        UserError: the file cannot be read, a line (named by its number) is not five finite numbers,
            or the count is missing, not a count, or too high.
    """
    try:
        # The header may be in any encoding; the numbers are ASCII.
        text = read_file(path).decode("latin-1")
    except OSError as error:
        raise UserError(f"cannot read prediction file {path}: {error.strerror}") from error
    lines = text.rstrip().split("\n")
    if lines == [""]:
        return np.empty((0, 4)), np.empty(0)
    if len(lines) < 2:
        raise UserError(f"{path}: no second line with the number of predictions; was it cut short?")
    count = lines[1].strip()
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise UserError(
            f"{path}: line 2 is {_quote(count)}, expected the number of predictions (line 1 is the "
            "picture's name)"
        )
    numbered = {number: line for number, line in enumerate(lines[2:], start=3) if line.strip()}
    table = _parse(list(numbered.values()))
    if table is None:
        bad = next(number for number, line in numbered.items() if _parse([line]) is None)
        raise UserError(
            f"{path}: line {bad} is {_quote(numbered[bad].strip())}, expected five finite numbers: "
            "x y w h score"
        )
    if int(count) > max(len(table), 1):
        raise UserError(
            f"{path}: line 2 promises {count} predictions, the file holds {len(table)}; "
            "it was cut short, write it again"
        )
    table = table[np.argsort(-table[:, 4], kind="stable")]
    return table[:, :4], table[:, 4]


def _parse(lines: Sequence[str]) -> NDArray[np.float64] | None:
    """(n, 5) float64 of lines that are not blank; `None` if one is not five finite numbers."""
    if not lines:
        return np.empty((0, COLUMNS))
    try:
        table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    except ValueError:
        return None
    return table if table.shape[1] == COLUMNS and np.isfinite(table).all() else None


def _quote(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else text[:longest] + "...")


def find_prediction_files(
    folder: Path | str, ids: Iterable[str]
) -> tuple[dict[str, Path], list[str], list[Path]]:
    """Find the prediction files of pictures in `folder`.

    The folder holds `<event>/<stem>.txt`, or one folder that does (archives often wrap them so).

    Args:
        folder: where to look.
        ids: pictures wanted, `<event>/<stem>`.

    Returns:
        id -> file, in the order of `ids`; the ids without a file; and the other .txt files there.

    Raises:
        UserError: the folder is absent, or has no file of these pictures, or has several folders
            that do.
    """
    folder = Path(folder)
    ids = list(ids)
    if not folder.is_dir():
        raise UserError(f"no prediction folder at {folder}")
    candidates = _folders_with(ids, [folder]) or _folders_with(
        ids, sorted(path for path in folder.iterdir() if path.is_dir())
    )
    if not candidates:
        raise UserError(
            f"no prediction file of the wanted pictures in {folder}: it should hold "
            "<event>/<picture>.txt"
        )
    if len(candidates) > 1:
        raise UserError(
            f"several prediction folders in {folder}: "
            f"{', '.join(path.name for path in candidates)}; name one of them"
        )
    ((_, files),) = candidates.items()
    found = {picture_id: files.pop(picture_id) for picture_id in ids if picture_id in files}
    missing = [picture_id for picture_id in ids if picture_id not in found]
    return found, missing, sorted(files.values())


def _folders_with(ids: Sequence[str], folders: Iterable[Path]) -> dict[Path, dict[str, Path]]:
    """For each folder with a prediction file of `ids`: id -> file of all its prediction files."""
    events = {id.partition("/")[0] for id in ids}
    there = {
        folder: {
            f"{path.parent.name}/{path.stem}": path
            for path in event_files(folder, events)
            if path.suffix == ".txt"
        }
        for folder in folders
    }
    return {folder: files for folder, files in there.items() if not files.keys().isdisjoint(ids)}
