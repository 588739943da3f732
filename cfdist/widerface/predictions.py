"""WIDER FACE prediction files: one text file a picture, `<event>/<stem>.txt`.

    <event>/<stem>.jpg
    <number of lines that follow>
    x y w h score
    ...

Two habits of writing exist (`STYLES`): the benchmark's own, and that of the CenterFace evaluation
script, which is coarser and adds one to the sizes. The rows made here hold exactly the numbers
that their text is read back as, so predictions in memory and in files give the same AP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from cfdist.errors import UserError

COLUMNS = 5  # x y w h score


@dataclass(frozen=True)
class Style:
    """How rows are made of boxes and printed.

    Attributes:
        name: the key in `STYLES`.
        size_offset: added to x2 - x1 and y2 - y1, in pixels.
        box_decimals: decimals of x y w h.
        score_decimals: decimals of the score.
    """

    name: str
    size_offset: int
    box_decimals: int
    score_decimals: int

    @property
    def line_format(self) -> str:
        """The format of one row, for the `%` operator."""
        box, score = f"%.{self.box_decimals}f", f"%.{self.score_decimals}f"
        return " ".join((box, box, box, box, score))


OFFICIAL_STYLE = Style("official", size_offset=0, box_decimals=3, score_decimals=6)
GUIDE_STYLE = Style("guide", size_offset=1, box_decimals=1, score_decimals=3)
STYLES = {style.name: style for style in (OFFICIAL_STYLE, GUIDE_STYLE)}


def rows(boxes_xyxy: np.ndarray, scores: np.ndarray, style: Style) -> np.ndarray:
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


def rows_official(boxes_xyxy: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`rows` in the benchmark's style: w = x2 - x1, to 1/1000 pixel; scores to six decimals."""
    return rows(boxes_xyxy, scores, OFFICIAL_STYLE)


def rows_guide(boxes_xyxy: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """`rows` in the CenterFace script's style: w = x2 - x1 + 1, to 1/10 pixel; scores to 1/1000."""
    return rows(boxes_xyxy, scores, GUIDE_STYLE)


def format_rows(table: np.ndarray, style: Style) -> list[str]:
    """One line of text, without its end, for each row of a table made by `rows`."""
    # One call of the operator for the whole table: half the time of a call a row.
    text = "\n".join([style.line_format] * len(table)) % tuple(table.reshape(-1).tolist())
    return text.splitlines()


def prediction_text(picture_id: str, table: np.ndarray, style: Style) -> str:
    """The whole prediction file of one picture, for a table made by `rows`."""
    lines = [f"{picture_id}.jpg", str(len(table)), *format_rows(table, style)]
    return "\n".join(lines) + "\n"


def read_predictions_file(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Read one prediction file, whoever wrote it.

    The picture is known by the file's name, so the header line may say anything. The count may be
    right, or 1 whatever follows (the CenterFace script's habit), or too low; where it promises
    more lines than there are, the file was cut short. A file of 0 bytes holds no predictions.

    Returns:
        boxes (n, 4) float64, x y w h in picture pixels, and scores (n,) float64, by falling score;
        equal scores in the order of the file.

    Raises:
        UserError: with the line, where a number is not one or not finite, a line has not five
            columns, or the count is missing, not a count, or too high.
    """
    path = Path(path)
    try:
        # The header may be in any encoding; the numbers are ASCII.
        text = path.read_bytes().decode("latin-1")
    except OSError as error:
        raise UserError(f"cannot read prediction file {path}: {error.strerror}") from error
    lines = text.rstrip().split("\n")
    if lines == [""]:
        return np.empty((0, 4)), np.empty(0)
    promised = _count(lines, path)
    table = _parse_table(lines[2:], path)
    if promised > max(len(table), 1):
        raise UserError(
            f"{path}: line 2 promises {promised} predictions, the file holds {len(table)}; "
            "it was cut short, write it again"
        )
    table = table[np.argsort(-table[:, 4], kind="stable")]
    return table[:, :4], table[:, 4]


def _count(lines: Sequence[str], path: Path) -> int:
    if len(lines) < 2:
        raise UserError(f"{path}: no second line with the number of predictions; was it cut short?")
    count = lines[1].strip()
    if not (count.isascii() and count.isdigit() and len(count) < 10):
        raise UserError(
            f"{path}: line 2 is {_quote(count)}, expected the number of predictions (line 1 is the "
            "picture's name)"
        )
    return int(count)


def _parse_table(lines: list[str], path: Path) -> np.ndarray:
    """(n, 5) float64 of the lines after the count."""
    if not any(map(str.strip, lines)):
        return np.empty((0, COLUMNS))
    try:
        table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    except ValueError:
        table = None
    if table is None or table.shape[1] != COLUMNS or not np.isfinite(table).all():
        _raise_at_bad_line(lines, path)
    return table


def _raise_at_bad_line(lines: Sequence[str], path: Path) -> NoReturn:
    """Raise the `UserError` for the first line that is not five finite numbers."""
    for number, line in enumerate(lines, start=3):
        if not line.strip():
            continue
        fields = line.split()
        if len(fields) != COLUMNS:
            problem: str | None = f"{len(fields)} columns, expected x y w h score"
        else:
            problem = next(filter(None, map(_number_problem, fields)), None)
        if problem:
            raise UserError(f"{path}: line {number}: {problem}: {_quote(line.strip())}")
    raise UserError(f"{path}: the lines after the second are not rows of x y w h score")


def _number_problem(field: str) -> str | None:
    try:
        value = np.loadtxt([field], np.float64, comments=None)
    except ValueError:
        return f"{_quote(field)} is not a number"
    return None if np.isfinite(value) else f"{_quote(field)} is not a finite number"


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
    files = _text_files_by_id(_root_with_events(folder, ids))
    found = {picture_id: files[picture_id] for picture_id in ids if picture_id in files}
    missing = [picture_id for picture_id in ids if picture_id not in files]
    unknown = sorted(path for picture_id, path in files.items() if picture_id not in found)
    return found, missing, unknown


def _root_with_events(folder: Path, ids: list[str]) -> Path:
    """The folder itself if it holds files of `ids`, else the one subfolder that does."""
    wanted = set(ids)
    if not wanted.isdisjoint(_text_files_by_id(folder)):
        return folder
    subfolders = sorted(path for path in folder.iterdir() if path.is_dir())
    roots = [path for path in subfolders if not wanted.isdisjoint(_text_files_by_id(path))]
    if not roots:
        raise UserError(
            f"no prediction file of the wanted pictures in {folder}: it should hold "
            "<event>/<picture>.txt"
        )
    if len(roots) > 1:
        raise UserError(
            f"several prediction folders in {folder}: {', '.join(path.name for path in roots)}; "
            "name one of them"
        )
    return roots[0]


def _text_files_by_id(root: Path) -> dict[str, Path]:
    """`<event>/<stem>` -> file, for each `<event>/<stem>.txt` below `root`."""
    return {f"{path.parent.name}/{path.name[:-4]}": path for path in root.glob("*/*.txt")}
