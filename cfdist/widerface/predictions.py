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

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cfdist.errors import UserError
from cfdist.files import read_file

COLUMNS = 5  # x y w h score

# No coordinate and no score of a picture comes near; areas of boxes beyond lose their sums.
TOO_LARGE = 1e9

# Larger files are not read: some 400,000 faces in one picture.
MAX_PREDICTION_BYTES = 1 << 24

# Which lines of a file count: all, as many as its count line says, or the first one.
Lines = Literal["all", "counted", "first"]

# What stands after a picture's name in the name of its prediction file.
_SUFFIX = ".txt"
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")


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
        boxes_xyxy: (n, 4) float32, x1 y1 x2 y2 in picture pixels, below `TOO_LARGE`.
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


def read_predictions_file(
    path: Path | str, counted: Lines = "all"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read one prediction file, whoever wrote it.

    The picture is known by the file's name, so the header line may say anything. The count may be
    right, or 1 whatever follows (the CenterFace script's habit), or too low. If it is higher than
    the number of lines that follow, the file was cut short. A file of 0 bytes holds no predictions.
    Those that are not `counted` are left out.

    Returns:
        boxes (n, 4) float64, x y w h in picture pixels, and scores (n,) float64, by falling score;
        equal scores in the order of the file.

    Raises:
        UserError: the file cannot be read, a line (named by its number) is not five finite numbers
            below `TOO_LARGE`, or the count is missing, not a count, or too high.
    """
    try:
        # The header may be in any encoding; the numbers are ASCII.
        text = read_file(path, MAX_PREDICTION_BYTES).decode("latin-1")
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
            f"x y w h score, each below {TOO_LARGE:.0e}"
        )
    if int(count) > max(len(table), 1):
        raise UserError(
            f"{path}: line 2 promises {count} predictions, the file holds {len(table)}; "
            "it was cut short, write it again"
        )
    if counted != "all":
        table = table[: int(count) if counted == "counted" else 1]
    table = table[np.argsort(-table[:, 4], kind="stable")]
    return table[:, :4], table[:, 4]


def _parse(lines: Sequence[str]) -> NDArray[np.float64] | None:
    """(n, 5) float64 of lines that are not blank; `None` if one is not five usable numbers."""
    if not lines:
        return np.empty((0, COLUMNS))
    try:
        table = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    except ValueError:
        return None
    # NaN is not below anything.
    return table if table.shape[1] == COLUMNS and (np.abs(table) < TOO_LARGE).all() else None


def _quote(text: str, longest: int = 60) -> str:
    return repr(text if len(text) <= longest else text[:longest] + "...")


@dataclass(frozen=True)
class PredictionFiles:
    """The prediction files of a folder, and the pictures they belong to.

    Attributes:
        found: Id -> file, in the order of the wanted ids.
        missing: The wanted ids without a file.
        others: Files of known pictures that are not wanted.
        unknown: Files that fit no known picture, or whose picture has another file.
        renamed: Files of `found` whose names fit only but for case, suffix or event folder.
    """

    found: dict[str, Path]
    missing: list[str] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)
    renamed: list[Path] = field(default_factory=list)


def find_prediction_files(
    folder: Path | str, ids: Iterable[str], known: Collection[str] | None = None
) -> PredictionFiles:
    """Find the prediction files of pictures in `folder`.

    The folder holds `<event>/<stem>.txt`, or one folder that does (archives often wrap them so).
    A name that fits but for case, for a picture's suffix (`<stem>.jpg.txt`) or for the event's
    folder (`<stem>.txt`, or in a folder of another name) is taken if it fits one picture only.

    Args:
        folder: where to look.
        ids: pictures wanted, `<event>/<stem>`.
        known: all pictures that a file may belong to; `None`: those wanted.

    Raises:
        UserError: the folder is absent, or has no file of the wanted pictures, or several folders
            that do, or two files fit one picture, or most files fit no known picture.
    """
    folder, ids = Path(folder), list(ids)
    names = _Names(ids if known is None else known)
    if not folder.is_dir():
        raise UserError(
            f"predictions={folder}: no such folder; give the folder of <event>/<name>.txt files, a "
            "zip archive of it, a COCO .json, or a URI of one"
        )
    candidates = _matches(names, [folder]) or _matches(
        names, sorted(path for path in folder.iterdir() if path.is_dir())
    )
    if len(candidates) > 1:
        raise UserError(
            f"several prediction folders in {folder}: "
            f"{', '.join(path.name for path in candidates)}; name one of them"
        )
    (match,) = candidates.values() or [_Match()]
    _refuse_strangers(folder, match, names)
    found = {id: match.files[id] for id in ids if id in match.files}
    if not found:
        example = f", such as {ids[0]}.txt" if ids else ""
        raise UserError(
            f"no prediction file of the wanted pictures in {folder}: it should hold "
            f"<event>/<picture>.txt{example}; of files of another data set name that, dataset=..."
        )
    return PredictionFiles(
        found,
        [id for id in ids if id not in found],
        sorted(path for id, path in match.files.items() if id not in found),
        sorted(match.unknown),
        [path for id, path in found.items() if id not in match.exact],
    )


@dataclass
class _Match:
    """Files of one folder by the pictures that their names fit.

    Attributes:
        files: Id -> its file.
        exact: The ids whose file has the very name.
        unknown: Files that fit no picture, or whose picture has a file of the very name.
    """

    files: dict[str, Path] = field(default_factory=dict)
    exact: set[str] = field(default_factory=set)
    unknown: list[Path] = field(default_factory=list)


class _Names:
    """The pictures that a file's name can mean."""

    def __init__(self, ids: Collection[str]) -> None:
        self.example = next(iter(ids), "<event>/<picture>")
        self._ids = frozenset(ids)
        self._folded: Mapping[str, list[str]] = _grouped(ids, _fold)
        self._stems: Mapping[str, list[str]] = _grouped(ids, lambda id: _fold(id.split("/")[-1]))
        self._events = {_fold(id.split("/")[0]) for id in ids}

    def files_in(self, folder: Path) -> list[Path]:
        """The content of a folder; of one without an event's name only if it can be read.

        Raises:
            OSError: a folder with an event's name cannot be read.
        """
        try:
            return list(folder.iterdir()) if folder.is_dir() else []
        except OSError:
            if _fold(folder.name) in self._events:
                raise
            return []

    def exact(self, path: Path) -> str | None:
        """The picture that a file is named after: `<event>/<stem>.txt`."""
        id = f"{path.parent.name}/{path.stem}"
        return id if path.suffix == _SUFFIX and id in self._ids else None

    def close(self, path: Path) -> str | None:
        """The one picture whose name a file's fits but for case, suffix or event folder."""
        stem, event = _fold(path.stem), _fold(path.parent.name)
        stems = [stem]
        stems += [stem.removesuffix(one) for one in _PICTURE_SUFFIXES if stem.endswith(one)]
        for one in stems:
            # A folder with an event's name holds that event's pictures.
            if event in self._events:
                fitting = self._folded.get(f"{event}/{one}", [])
            else:
                fitting = self._stems.get(one, [])
            if len(fitting) == 1:
                return fitting[0]
        return None


def _fold(name: str) -> str:
    return name.strip().casefold()


def _grouped(ids: Iterable[str], key: Callable[[str], str]) -> dict[str, list[str]]:
    groups = defaultdict(list)
    for id in ids:
        groups[key(id)].append(id)
    return groups


def _matches(names: _Names, folders: Iterable[Path]) -> dict[Path, _Match]:
    """The folders of which a file's name fits a picture, with all their prediction files."""
    matches = {folder: _match(names, folder) for folder in folders}
    return {folder: match for folder, match in matches.items() if match.files}


def _match(names: _Names, folder: Path) -> _Match:
    """Which picture each prediction file of a folder belongs to.

    Raises:
        UserError: two files fit one picture, and neither has its very name.
    """
    beside = _text_files(folder.iterdir())
    inside = _text_files(path for one in folder.iterdir() for path in names.files_in(one))
    match = _Match()
    left = []
    for path in (*beside, *inside):
        if id := names.exact(path):
            match.files[id] = path
            match.exact.add(id)
        else:
            left.append(path)
    unknown_beside: list[Path] = []
    for path in left:
        id = names.close(path)
        if id is None or id in match.exact:
            (unknown_beside if path.parent == folder else match.unknown).append(path)
        elif id in match.files:
            raise UserError(
                f"{match.files[id]} and {path} both fit the picture {id}; remove one of them, or "
                "name the folder of one set of predictions"
            )
        else:
            match.files[id] = path
    # Beside the event folders lie notes and lists; they are only predictions if others there are.
    if any(path.parent == folder for path in match.files.values()):
        match.unknown += unknown_beside
    return match


def _text_files(paths: Iterable[Path]) -> list[Path]:
    """The text files among paths, without hidden ones (such as macOS's "._name.txt")."""
    return sorted(
        path for path in paths if path.suffix.lower() == _SUFFIX and not path.name.startswith(".")
    )


def _refuse_strangers(folder: Path, match: _Match, names: _Names) -> None:
    """Refuse a folder of which most files fit no picture: the figures would be those of a few."""
    strangers, all_files = len(match.unknown), len(match.unknown) + len(match.files)
    if match.files and 2 * strangers > all_files:
        raise UserError(
            f"{strangers} of the {all_files} prediction files in {folder} fit no picture of the "
            f"ground truth, the first is {sorted(match.unknown)[0].relative_to(folder)}; name them "
            f"as the pictures, {names.example}.txt, or give the folder and the ground truth of one "
            "data set"
        )
