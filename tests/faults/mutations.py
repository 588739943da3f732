"""Reads files so many times, damaged in another way each time: `python mutations.py FOLDER 300`.

It runs alone in a process, so that a reader that ends its process is found out: its last line names
the reader and the seed. Of each reader a JSON line says the longest time that a reading took, in
seconds, and the seeds whose outcome no caller expects.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from scipy.io import savemat

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from cfdist import storage
from cfdist.ascend.npu_smi import parse_npu_smi
from cfdist.decode import HeadMaps
from cfdist.detections import Detections, from_arrow, to_arrow
from cfdist.distributed.journal import Journal, RunIdentity
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.preprocess import PictureError, decode_picture, read_into
from cfdist.widerface.ground_truth import GROUND_TRUTH_FILES, load_ground_truth
from cfdist.widerface.manifest import build_manifest
from cfdist.widerface.predictions import read_predictions_file
from cfdist.workflow.files import Record, output_names, write_raw
from cfdist.workflow.stages import RawOutput, picture_size, write_prediction

RUN = RunIdentity("f", "openvino")
SPEC = ModelSpec(
    "centerface", Path("m.onnx"), "0" * 64, "centerface", None, 64, 96, "RGB", 1.0, (0.0,) * 3,
    (1.0,) * 3, 1, 50, 0.3,
)  # fmt: skip


def mutate(content: bytes, seed: int) -> bytes:
    """Bits flipped, cut, zeroed, or inserted."""
    random = np.random.default_rng(seed)
    at = int(random.integers(0, len(content)))
    kind = seed % 4
    if kind == 0:
        flipped = bytearray(content)
        for place in random.integers(0, len(content), random.integers(1, 9)):
            flipped[place] ^= 1 << int(random.integers(0, 8))
        return bytes(flipped)
    if kind == 1:
        return content[:at]
    size = int(random.integers(1, 400))
    if kind == 2:
        return content[:at] + bytes(len(content[at : at + size])) + content[at + size :]
    return content[:at] + random.bytes(size) + content[at:]


class UnexpectedError(Exception):
    """A reading that no caller expects."""


def picture(suffix: str, *flags: int, is_checked: bool = False) -> tuple[bytes, Callable]:
    """A picture of a format; one with checksums decodes to the very pixels or not at all."""
    pixels = cv2.blur(np.random.default_rng(1).integers(0, 256, (90, 120, 3), np.uint8), (3, 3))
    if suffix == "cmyk":
        from PIL import Image

        buffer = io.BytesIO()
        Image.fromarray(np.dstack([pixels, pixels[..., :1]]), "CMYK").save(buffer, "JPEG")
        content = buffer.getvalue()
    else:
        content = cv2.imencode(suffix, pixels, list(flags))[1].tobytes()
    whole = decode_picture(content)
    row = np.zeros((64, 64, 3), np.uint8)

    def read(path: Path) -> None:
        for function in (picture_size, lambda p: read_into(str(p), row, use_damaged=True)):
            with contextlib.suppress(PictureError):
                function(path)
        try:
            found = decode_picture(path.read_bytes())
        except PictureError:
            return
        if is_checked and not np.array_equal(found[..., :3], whole[..., :3]):
            raise UnexpectedError("other pixels")

    return content, read


def cells(*items: object) -> np.ndarray:
    column = np.empty((len(items), 1), object)
    for row, item in enumerate(items):
        column[row, 0] = item
    return column


def ground_truth(folder: Path, compressed: bool) -> tuple[bytes, Callable]:
    """The four files, of which one is damaged; compressed ones have checksums."""
    names = [f"picture_{i}" for i in range(12)]
    common = {
        "event_list": cells("0--Parade", "1--Handshaking"),
        "file_list": cells(cells(*names[:6]), cells(*names[6:])),
    }
    boxes = [np.arange(4 * i + 4, dtype=np.int32).reshape(-1, 4) for i in range(12)]
    index = [np.arange(1, i + 2, dtype=np.uint16).reshape(-1, 1) for i in range(12)]
    lists = {
        name: {**common, variable: cells(cells(*values[:6]), cells(*values[6:]))}
        for name, variable, values in [
            (GROUND_TRUTH_FILES[0], "face_bbx_list", boxes),
            *((name, "gt_list", index) for name in GROUND_TRUTH_FILES[1:]),
        ]
    }
    for name, variables in lists.items():
        savemat(folder / name, variables, do_compression=compressed)
    whole = load_ground_truth(folder)
    path = folder / GROUND_TRUTH_FILES[0]
    content = path.read_bytes()

    def read(damaged: Path) -> None:
        path.write_bytes(damaged.read_bytes())
        try:
            found = load_ground_truth(folder)
        except UserError:
            return
        if compressed and not all(np.array_equal(found[i].boxes, whole[i].boxes) for i in whole):
            raise UnexpectedError("other boxes")

    return content, read


def predictions() -> tuple[bytes, Callable]:
    lines = [f"{i}.5 {i} 10.25 20 0.{99 - i}" for i in range(40)]

    def read(path: Path) -> None:
        try:
            boxes, scores = read_predictions_file(path)
        except UserError:
            return
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise UnexpectedError("not finite")

    return "\n".join(["0--Parade/a.jpg", "40", *lines, ""]).encode(), read


def journal(folder: Path) -> tuple[bytes, Callable]:
    random = np.random.default_rng(2)
    opened = Journal(folder / "journal", RUN)
    for i in range(6):
        opened.append(to_arrow([Detections(f"e/{i}", random.random((9, 4), np.float32))]))
    opened.close()
    (segment,) = (folder / "journal").glob("segment-*")

    def contents() -> list[bytes]:
        return [one.boxes.tobytes() for t in Journal(folder / "journal", RUN).read()
                for one in from_arrow(t)]  # fmt: skip

    whole = contents()

    def read(path: Path) -> None:
        segment.write_bytes(path.read_bytes())
        found = contents()
        if found != whole[: len(found)]:
            raise UnexpectedError("other boxes")

    return segment.read_bytes(), read


def journal_identity(folder: Path) -> tuple[bytes, Callable]:
    Journal(folder / "journal", RUN)
    file = folder / "journal" / "run.json"
    content = file.read_bytes()

    def read(path: Path) -> None:
        file.write_bytes(path.read_bytes())
        with contextlib.suppress(UserError):
            Journal(folder / "journal", RUN)

    return content, read


def record(folder: Path) -> tuple[bytes, Callable]:
    """The record of a folder of input tensors."""
    settings = {"input": "f32", "height": 800, "mean": [0.0] * 3, "fingerprint": "0" * 64}
    written = Record(folder, folder / "bins_preprocess.json", settings)

    def read(path: Path) -> None:
        written.path.write_bytes(path.read_bytes())
        with contextlib.suppress(UserError):
            written.check(settings, "infer.input")

    return json.dumps(settings, indent=2).encode(), read


def raw_output(folder: Path) -> tuple[bytes, Callable]:
    """The heat map of a raw output, with some faces."""
    random = np.random.default_rng(3)
    files = [folder / name for name in output_names("a")]
    for file, channels in zip(files, HeadMaps.CHANNELS, strict=True):
        write_raw(file, random.random((channels, 16, 24), np.float32))
    cv2.imwrite(str(folder / "a.jpg"), np.zeros((50, 70, 3), np.uint8))
    output = RawOutput("e/a", str(folder / "a.jpg"), [str(file) for file in files])
    content = files[0].read_bytes()

    def read(path: Path) -> None:
        files[0].write_bytes(path.read_bytes())
        write_prediction(output, SPEC, folder / "predictions", "official")

    return content, read


def npu_smi_table() -> tuple[bytes, Callable]:
    rows = [
        "| 0       310P3     | OK              | 15.8         42                0    / 0     |",
        "| 0       0         | 0000:82:00.0    | 0            1074 / 21534                   |",
    ]

    def read(path: Path) -> None:
        names = [chip.name for chip in parse_npu_smi(path.read_bytes().decode(errors="replace"))]
        if not all(name.startswith("Ascend") for name in names):
            raise UnexpectedError(str(names))

    return "\n".join(rows * 4).encode(), read


def archive(folder: Path) -> tuple[bytes, Callable]:
    """A zip archive of pictures; what is read of it is what was packed, or an error."""
    random = np.random.default_rng(4)
    contents = {f"images/e/{i}.jpg": random.bytes(60) + bytes(400 * i) for i in range(6)}
    with zipfile.ZipFile(folder / "whole.zip", "w") as packed:
        for i, (name, content) in enumerate(contents.items()):
            packed.writestr(name, content, zipfile.ZIP_DEFLATED if i % 2 else zipfile.ZIP_STORED)
    ids = [f"e/{i}" for i in range(6)]

    def read(path: Path) -> None:
        try:
            items = build_manifest(path, ids).items
        except UserError:
            return
        row = np.zeros((64, 64, 3), np.uint8)
        for item in items:
            with contextlib.suppress(PictureError):
                read_into(item.path, row)
            with contextlib.suppress(OSError):
                if storage.read(item.path) not in contents.values():
                    raise UnexpectedError("another content")

    return (folder / "whole.zip").read_bytes(), read


READERS: dict[str, Callable[[Path], tuple[bytes, Callable]]] = {
    "jpeg": lambda _: picture(".jpg"),
    "progressive": lambda _: picture(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "cmyk": lambda _: picture("cmyk"),
    "png": lambda _: picture(".png", is_checked=True),
    "bmp": lambda _: picture(".bmp"),
    "gif": lambda _: picture(".gif"),
    "tiff": lambda _: picture(".tiff"),
    "webp": lambda _: picture(".webp"),
    "compressed ground truth": lambda folder: ground_truth(folder, True),
    "plain ground truth": lambda folder: ground_truth(folder, False),
    "predictions": lambda _: predictions(),
    "journal": journal,
    "journal identity": journal_identity,
    "record": record,
    "raw output": raw_output,
    "archive": archive,
    "npu-smi table": lambda _: npu_smi_table(),
}


def main(reader: str, folder: Path, count: int) -> None:
    """Read the file damaged in each way."""
    folder.mkdir()
    content, read = READERS[reader](folder)
    path, bad, longest = folder / "damaged", [], 0.0
    for seed in range(count):
        path.write_bytes(mutate(content, seed))
        print(f"{reader}, seed {seed}", flush=True)
        start = time.perf_counter()
        try:
            read(path)
        except Exception as error:
            bad.append(f"{seed}: {type(error).__name__}: {error}")
        longest = max(longest, time.perf_counter() - start)
    print(json.dumps({"reader": reader, "unexpected": bad, "longest": longest}), flush=True)


if __name__ == "__main__":
    for name in READERS:
        main(name, Path(sys.argv[1], name), int(sys.argv[2]))
