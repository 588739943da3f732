"""The journal keeps what was appended, whatever happens to the process."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from cfdist.detections import Detections, to_arrow
from cfdist.distributed import journal as journal_module
from cfdist.distributed.journal import (
    Cut,
    Journal,
    RunIdentity,
    begun_identity,
    check_identity,
    differences,
)
from cfdist.errors import UserError

RUN = RunIdentity("run", "openvino")
PARTS = RunIdentity("run", "openvino", {"backend": "a"})


def found(id: str) -> Detections:
    return Detections(id, np.ones((2, 4), np.float32), np.ones(2, np.float32))


def ids(journal: Journal) -> list[str]:
    return [id for table in journal.read() for id in table.column("id").to_pylist()]


@pytest.mark.slow
def test_what_was_appended_is_read_by_the_next_start(tmp_path):
    first = Journal(tmp_path / "j", RUN)
    first.append(to_arrow([found("a/1"), Detections("a/2", error="broken")]))
    first.append(to_arrow([found("a/3")]))
    # not closed: the process was killed

    second = Journal(tmp_path / "j", RUN)
    assert ids(second) == ["a/1", "a/2", "a/3"]
    second.append(to_arrow([found("a/4")]))
    second.close()
    assert ids(Journal(tmp_path / "j", RUN)) == ["a/1", "a/2", "a/3", "a/4"]


@pytest.mark.parametrize("cut", [1, 10, 100, 300])
def test_a_half_written_batch_is_left_out(tmp_path, cut):
    journal = Journal(tmp_path / "j", RUN)
    journal.append(to_arrow([found("a/1")]))
    segment = next((tmp_path / "j").glob("segment-*"))
    whole = segment.stat().st_size
    journal.append(to_arrow([found("a/2")]))
    content = segment.read_bytes()
    segment.write_bytes(content[: max(whole, len(content) - cut)])
    assert ids(Journal(tmp_path / "j", RUN)) == ["a/1"]


def test_an_empty_segment_is_no_error(tmp_path):
    journal = Journal(tmp_path / "j", RUN)
    (tmp_path / "j" / "segment-0000.arrow").touch()
    assert ids(journal) == []


def test_another_run_s_journal_is_refused(tmp_path):
    Journal(tmp_path / "j", RunIdentity("one", "openvino"))
    for open_it in (Journal, check_identity):
        with pytest.raises(UserError, match="holds an unfinished run of other settings"):
            open_it(tmp_path / "j", RunIdentity("two", "openvino"))
    check_identity(tmp_path / "j", RunIdentity("one", "openvino"))
    check_identity(tmp_path / "none", RunIdentity("one", "openvino"))


def test_what_differs_is_said():
    then = {"model.sha256": "a", "model.nms": 0.3, "pictures": 3226, "pictures.sha256": "b"}
    assert differences(then, then | {"model.sha256": "c"}) == "weights: other sha256"
    now = then | {"model.nms": None, "pictures": 610, "pictures.sha256": "d"}
    assert differences(then, now) == ("model.nms: 0.3 then, null now; pictures: 3226 then, 610 now")
    assert "by their names or sizes" in differences(then, then | {"pictures.sha256": "d"})
    assert differences(then, then | {"cfdist": "9"}) == 'cfdist: null then, "9" now'


def test_the_identity_of_a_begun_run_is_read_back(tmp_path):
    assert begun_identity(tmp_path / "j") is None
    Journal(tmp_path / "j", PARTS)
    assert begun_identity(tmp_path / "j").parts == PARTS.parts


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b"\xff", None])
def test_without_its_file_the_identity_is_in_each_segment(tmp_path, damage):
    journal = Journal(tmp_path / "j", PARTS)
    journal.append(to_arrow([found("a/1")]))
    file = tmp_path / "j" / "run.json"
    whole = file.read_text()
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    assert begun_identity(tmp_path / "j").parts == PARTS.parts
    with pytest.raises(UserError, match=r"other settings.*\(backend: \"a\" then, null now\)"):
        Journal(tmp_path / "j", RunIdentity("another", "openvino"))
    again = Journal(tmp_path / "j", PARTS)
    assert (ids(again), again.cuts, file.read_text()) == (["a/1"], [], whole)


@pytest.mark.slow
def test_no_flipped_bit_makes_another_identity(tmp_path):
    Journal(tmp_path / "j", PARTS).append(to_arrow([found("a/1")]))
    file = tmp_path / "j" / "run.json"
    content, refused = file.read_bytes(), 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            assert begun_identity(tmp_path / "j").parts == PARTS.parts
        except UserError as error:  # the version's digit is another
            assert "version of cfdist" in str(error)
            refused += 1
    assert refused <= 8


@pytest.mark.parametrize(("version", "age"), [(99, "a newer"), (1, "an older"), (None, "an older")])
def test_another_version_s_run_is_refused_and_kept(tmp_path, monkeypatch, version, age):
    with monkeypatch.context() as patch:
        patch.setattr(journal_module, "_VERSION", version or 1)
        Journal(tmp_path / "j", RUN).append(to_arrow([found("a/1")]))
    if version is None:  # it had no version, and no identity in its segments
        (tmp_path / "j" / "run.json").write_text('{"fingerprint": "f", "backend": "b"}')
        (tmp_path / "j" / "segment-0000.arrow").write_bytes(b"ARROW1")
    before = {path: path.read_bytes() for path in (tmp_path / "j").iterdir()}
    for look in (begun_identity, lambda folder: Journal(folder, RUN)):
        with pytest.raises(UserError, match=f"unfinished run of {age} version of cfdist"):
            look(tmp_path / "j")
    assert {path: path.read_bytes() for path in (tmp_path / "j").iterdir()} == before


@pytest.mark.slow
def test_no_flipped_bit_of_the_version_refuses_a_whole_journal(tmp_path):
    Journal(tmp_path / "j", PARTS).append(to_arrow([found("a/1")]))
    file = tmp_path / "j" / "run.json"
    content = file.read_bytes()
    for bit in range(8 * len('{"version": 2,')):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        assert begun_identity(tmp_path / "j") == PARTS
        assert ids(Journal(tmp_path / "j", PARTS)) == ["a/1"]


def test_a_segment_of_another_run_is_refused(tmp_path):
    Journal(tmp_path / "i", replace(RUN, fingerprint="another")).append(to_arrow([found("a/1")]))
    Journal(tmp_path / "j", RUN).append(to_arrow([found("a/1")]))
    os.rename(tmp_path / "i" / "segment-0000.arrow", tmp_path / "j" / "segment-0001.arrow")
    with pytest.raises(UserError, match=r"segment-0001.arrow: is another run's"):
        Journal(tmp_path / "j", RUN)


class Failing:
    """In place of a function of `os`: fails once, at a call, after a part of the work."""

    def __init__(self, real, error: int, at: int, share: float = 1.0) -> None:
        self.real, self.error, self.left, self.share = real, error, at, share

    def __call__(self, descriptor, *data):
        self.left -= 1
        if self.left == 0:
            self.real(descriptor, *(piece[: int(len(piece) * self.share)] for piece in data))
            raise OSError(self.error, os.strerror(self.error))
        return self.real(descriptor, *data)


@pytest.mark.parametrize(
    ("name", "share"), [("write", 0.0), ("write", 0.5), ("write", 1.0), ("fsync", 1.0)]
)
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_nothing_is_appended_behind_a_torn_table(tmp_path, monkeypatch, name, share, number):
    journal = Journal(tmp_path / "j", RUN)
    journal.append(to_arrow([found("a/1")]))
    with monkeypatch.context() as patch:
        patch.setattr(os, name, Failing(getattr(os, name), number, 1, share))
        with pytest.raises(OSError, match=rf"{os.strerror(number)}: .*j'"):
            journal.append(to_arrow([found("a/2")]))
    assert ids(Journal(tmp_path / "j", RUN)) == ["a/1"]
    journal.append(to_arrow([found("a/3")]))
    again = Journal(tmp_path / "j", RUN)
    assert (ids(again), again.cuts) == (["a/1", "a/3"], [])
    assert len(list((tmp_path / "j").glob("segment-*"))) == 2


def test_a_torn_table_that_cannot_be_cut_off_ends_its_segment(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "j", RUN)
    journal.append(to_arrow([found("a/1")]))
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", Failing(os.write, errno.EIO, 1, 0.5))
        patch.setattr(os, "ftruncate", lambda *_: os.read(-1, 1))  # fails
        with pytest.raises(OSError, match="Input/output"):
            journal.append(to_arrow([found("a/2")]))
    journal.append(to_arrow([found("a/3")]))
    again = Journal(tmp_path / "j", RUN)
    assert ids(again) == ["a/1", "a/3"]
    assert [cut.segment for cut in again.cuts] == ["segment-0000.arrow"]


def segment_of(folder, count: int) -> bytes:
    """The content of a segment of some tables of one picture each."""
    journal = Journal(folder, RUN)
    for i in range(count):
        journal.append(to_arrow([found(f"a/{i}")]))
    journal.close()
    return (folder / "segment-0000.arrow").read_bytes()


@pytest.mark.slow
def test_no_flipped_bit_is_read_as_a_number(tmp_path):
    content = segment_of(tmp_path / "j", 2)
    segment = tmp_path / "j" / "segment-0000.arrow"
    expected = [table.to_pydict() for table in Journal(tmp_path / "j", RUN).read()]
    end = len(segment_of(tmp_path / "one", 1))  # of the first table
    start = 2 * end - len(content)  # of it, behind the identity
    assert len(expected) == 2
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        segment.write_bytes(damaged)
        journal = Journal(tmp_path / "j", RUN)
        kept = 0 if at < start else start if at < end else end
        assert journal.cuts == [Cut("segment-0000.arrow", kept, len(content) - kept)]
        assert [table.to_pydict() for table in journal.read()] == expected[: int(kept == end)]
        assert segment.stat().st_size == kept


def test_zeros_after_a_crash_end_a_segment(tmp_path):
    content = segment_of(tmp_path / "j", 1)
    (tmp_path / "j" / "segment-0000.arrow").write_bytes(content + bytes(4096))
    journal = Journal(tmp_path / "j", RUN)
    assert ids(journal) == ["a/0"]
    assert str(journal.cuts[0]) == (
        f"the journal's segment-0000.arrow was cut at byte {len(content)}, behind its last whole "
        "batch: 4096 bytes were dropped, and their pictures are done again"
    )
    assert Journal(tmp_path / "j", RUN).cuts == []  # said once


def test_a_segment_behind_a_damaged_one_is_read(tmp_path):
    segment_of(tmp_path / "j", 2)
    later = Journal(tmp_path / "j", RUN)
    later.append(to_arrow([found("b/1")]))
    (tmp_path / "j" / "segment-0000.arrow").write_bytes(b"")
    assert ids(Journal(tmp_path / "j", RUN)) == ["b/1"]
