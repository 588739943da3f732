"""The ordinary reader reads the files back."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.sample.matlab import mat_files
from cfdist.widerface.ground_truth import PictureTruth, load_ground_truth

boxes = st.lists(st.tuples(*[st.integers(0, 2000)] * 4), min_size=1, max_size=5)


@settings(max_examples=30)
@given(faces=st.lists(boxes, min_size=1, max_size=6), seed=st.integers(0, 100))
def test_what_is_written_is_read_back(tmp_path_factory, faces, seed):
    random = np.random.default_rng(seed)
    truths = [
        PictureTruth(
            f"{i // 3}--event/p{i}", np.array(one, float), random.random((3, len(one))) < 0.5
        )
        for i, one in enumerate(faces)
    ]
    folder = tmp_path_factory.mktemp("truth")
    files = mat_files(truths)
    assert files == mat_files(truths)  # the same bytes at any time
    for name, content in files.items():
        (folder / name).write_bytes(content)
    read = load_ground_truth(folder)
    assert list(read) == [truth.id for truth in truths]
    for truth in truths:
        np.testing.assert_array_equal(read[truth.id].boxes, truth.boxes)
        np.testing.assert_array_equal(read[truth.id].counted, truth.counted)
