"""The journal keeps what was appended, whatever happens to the process."""

from __future__ import annotations

import numpy as np
import pytest

from cfdist.detections import Detections, to_arrow
from cfdist.distributed.journal import Journal, RunIdentity, begun_identity, check_identity
from cfdist.errors import UserError

RUN = RunIdentity("run", "openvino")


def found(id: str) -> Detections:
    return Detections(id, np.ones((2, 4), np.float32), np.ones(2, np.float32))


def ids(journal: Journal) -> list[str]:
    return [id for table in journal.read() for id in table.column("id").to_pylist()]


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


def test_the_identity_of_a_begun_run_is_read_back(tmp_path):
    assert begun_identity(tmp_path / "j") is None
    Journal(tmp_path / "j", RUN)
    assert begun_identity(tmp_path / "j") == RUN
    (tmp_path / "j" / "run.json").write_text("{}")
    assert begun_identity(tmp_path / "j") is None
    with pytest.raises(UserError):
        check_identity(tmp_path / "j", RUN)


def segment_of(folder, count: int) -> bytes:
    """The content of a segment of some tables of one picture each."""
    journal = Journal(folder, RUN)
    for i in range(count):
        journal.append(to_arrow([found(f"a/{i}")]))
    journal.close()
    return (folder / "segment-0000.arrow").read_bytes()


def test_no_flipped_bit_is_read_as_a_number(tmp_path):
    content = segment_of(tmp_path / "j", 2)
    expected = [table.to_pydict() for table in Journal(tmp_path / "j", RUN).read()]
    assert len(expected) == 2
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        (tmp_path / "j" / "segment-0000.arrow").write_bytes(damaged)
        read = [table.to_pydict() for table in Journal(tmp_path / "j", RUN).read()]
        assert read == expected[: 1 if at >= len(content) // 2 else 0]


def test_zeros_after_a_crash_end_a_segment(tmp_path):
    content = segment_of(tmp_path / "j", 1)
    (tmp_path / "j" / "segment-0000.arrow").write_bytes(content + bytes(4096))
    assert ids(Journal(tmp_path / "j", RUN)) == ["a/0"]
