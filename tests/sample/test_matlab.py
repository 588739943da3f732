"""Ground truth written as MATLAB files is what is read back, and looks like the real files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat

from cfdist.sample.matlab import mat_files
from cfdist.widerface.ground_truth import GROUND_TRUTH_FILES, PictureTruth, load_ground_truth


@st.composite
def truths(draw: st.DrawFn) -> list[PictureTruth]:
    """One to three events of one to three pictures each."""
    made = []
    for event in range(draw(st.integers(1, 3))):
        for picture in range(draw(st.integers(1, 3))):
            faces = draw(st.integers(0, 300) if picture else st.integers(0, 3))
            rng = np.random.default_rng(draw(st.integers(0, 1000)))
            boxes = rng.integers(0, 5000, (faces, 4)).astype(np.float64)
            counted = rng.integers(0, 2, (3, faces)).astype(bool)
            made.append(PictureTruth(f"{event}--Party/{event}_Party_{picture}", boxes, counted))
    return made


def write(folder: Path, pictures: list[PictureTruth]) -> None:
    for name, content in mat_files(pictures).items():
        (folder / name).write_bytes(content)


@given(truths())
def test_what_is_written_is_read_back(pictures: list[PictureTruth]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), pictures)
        read = load_ground_truth(folder)
    assert list(read) == [picture.id for picture in pictures]
    for picture in pictures:
        np.testing.assert_array_equal(read[picture.id].boxes, picture.boxes)
        np.testing.assert_array_equal(read[picture.id].counted, picture.counted)


def test_the_files_have_the_structure_of_the_real_ones(tmp_path: Path, shared: Path) -> None:
    boxes = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    counted = np.array([[False, True], [False, True], [True, True]])
    write(tmp_path, [PictureTruth(f"0--A/{name}", boxes, counted) for name in ("x", "y")])
    for name in GROUND_TRUTH_FILES:
        real, ours = (
            loadmat(shared / "data" / "wider_val_mini" / "ground_truth" / name),
            loadmat(tmp_path / name),
        )
        needed = {"event_list", "file_list", "face_bbx_list"}
        needed |= {"gt_list"} & real.keys()
        assert {key for key in ours if not key.startswith("__")} == needed
        for field in needed:
            a, b = real[field], ours[field]
            while a.dtype == object:
                assert b.dtype == object
                assert a.shape[1] == b.shape[1] == 1
                a, b = a[0, 0], b[0, 0]
            assert (a.dtype.kind, a.ndim) == (b.dtype.kind, b.ndim)


def test_the_bytes_hold_no_date() -> None:
    truth = PictureTruth("0--A/a", np.ones((1, 4)), np.ones((3, 1), bool))
    for content in mat_files([truth]).values():
        assert content[:116].decode().rstrip() == "MATLAB 5.0 MAT-file, the sample set of cfdist"
