"""An interrupted run whose journal is damaged goes on to the same bytes, or is refused in a line.

Each damage is one to a run that was interrupted twice, so that its journal has three segments.
`CFDIST_LONG_TESTS=1` tries ten times as many.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from cfdist.detections import to_arrow
from cfdist.distributed.reducer import Reducer
from cfdist.errors import UserError
from cfdist.files import JOURNAL
from tests.faults import IS_LONG
from tests.faults.test_write_points import BATCHES, IDENTITY, ORDER, TRUTH, files_of, found, run

COUNT = 200 if IS_LONG else 20


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Path:
    """The folder of a run that was interrupted twice, when one picture was left."""
    folder = tmp_path_factory.mktemp("interrupted") / "out"
    (folder).mkdir()
    (folder / ".lock").touch()
    for batch in (*BATCHES[:2], ORDER[5:5]):
        reducer = Reducer()
        reducer.open(TRUTH, ORDER, folder, IDENTITY, "official")
        for id in batch:
            reducer.add(to_arrow([found(id)]))
    assert len(list((folder / JOURNAL).iterdir())) == 3
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(folder)
    return files_of(folder)


def flipped(content: bytes, random: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    damaged[random.integers(len(content))] ^= 1 << int(random.integers(8))
    return bytes(damaged)


def zeroed(content: bytes, random: np.random.Generator) -> bytes:
    at = int(random.integers(len(content)))
    return content[:at] + bytes(len(content) - at)


def truncated(content: bytes, random: np.random.Generator) -> bytes:
    return content[: int(random.integers(len(content)))]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [flipped, zeroed, truncated])
def test_a_damaged_journal(interrupted, expected, tmp_path, damage, capsys):
    same, refused, wrong = 0, 0, []
    for seed in range(COUNT):
        random = np.random.default_rng(seed)
        folder = shutil.copytree(interrupted, tmp_path / str(seed) / "out")
        file = random.choice(sorted((folder / JOURNAL).iterdir()))
        file.write_bytes(damage(file.read_bytes(), random))
        try:
            run(folder)
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
            continue
        if files_of(folder) == expected:
            same += 1
        else:
            wrong.append((seed, file.name))
        shutil.rmtree(folder)
    with capsys.disabled():
        print(
            f"\n{damage.__name__}: {same} of {COUNT} end with the same bytes, {refused} are refused"
        )
    assert wrong == []
    assert same > COUNT * 0.9
