"""One file from a web server that does what servers do: it arrives whole, or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator

import pytest

from cfdist.download import transfer
from cfdist.download.transfer import Transfer
from cfdist.errors import DiskFullError, StoppedError, UserError
from tests.fakes.mirror import Mirror, serving


def archive(text: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("one", text * 100_000)
    return file.getvalue()


GOOD, OTHER = archive(b"good"), archive(b"evil")
HALF = len(GOOD) // 2


@pytest.fixture(scope="module")
def server() -> Iterator[Mirror]:
    with serving() as found:
        yield found


@pytest.fixture
def mirror(server, monkeypatch) -> Mirror:
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.01)
    server.files, server.faults, server.asked = {"f.zip": GOOD, "real/f.zip": GOOD}, {}, []
    return server


def check_sum(path) -> None:
    if hashlib.md5(path.read_bytes()).digest() != hashlib.md5(GOOD).digest():
        raise UserError(f"{path}: another sum")


@pytest.fixture
def fetch(mirror, tmp_path) -> Callable[..., None]:
    def run(*names: str, **settings) -> None:
        addresses = [mirror.address + name for name in names or ("f.zip",)]
        values = {"check": check_sum, "size": len(GOOD), "is_known": True, "stall_s": 0.2}
        Transfer(tmp_path / "f.zip", addresses, **{**values, **settings}).run()
        assert [path.name for path in tmp_path.iterdir()] == ["f.zip"]
        assert (tmp_path / "f.zip").read_bytes() == GOOD

    return run


UNKNOWN = {"size": None, "is_known": False}


@pytest.mark.parametrize("known", [{}, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize(
    ("faults", "ranges"),
    [
        ([""], [None]),
        (["redirect"], [None, None]),
        (["cut", ""], [None, HALF]),
        (["cut", "cut", ""], [None, HALF, HALF + (len(GOOD) - HALF + 1) // 2]),
        (["cut", "no ranges"], [None, HALF]),
        (["stall", ""], [None, HALF]),
        ([503, 429, ""], [None, None, None]),
        (["no length"], [None]),
        (["no length cut", ""], [None, HALF]),
        (["cut", "wrong range", ""], [None, HALF, None]),
    ],
)
def test_the_file_arrives_whole_by_as_few_bytes_as_there_can_be(
    fetch, mirror, faults, ranges, known
):
    mirror.faults["f.zip"] = list(faults)
    fetch(**known)
    began = [int(one[6:-1]) if one else None for _, one, _ in mirror.asked]
    # An odd length, half of which is rounded up.
    assert [one and one - one % 2 for one in began] == [one and one - one % 2 for one in ranges]


def test_a_file_without_validator_and_sum_is_never_joined_from_two_parts(fetch, mirror):
    mirror.faults["f.zip"] = ["cut,no validator", ""]
    fetch(**UNKNOWN)
    assert [one for _, one, _ in mirror.asked] == [None, None]


@pytest.mark.parametrize("known", [{}, UNKNOWN], ids=["known", "unknown"])
def test_a_file_that_changes_between_two_parts_is_fetched_anew(fetch, mirror, known, tmp_path):
    mirror.files["f.zip"], mirror.faults["f.zip"] = OTHER, ["cut"]
    with pytest.raises(StoppedError):
        transfer_of_other = {"check": check_sum, "stall_s": 0.2, **UNKNOWN, **known}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(transfer, "_MOST_CONNECTIONS", 1)
            address = [mirror.address + "f.zip"]
            Transfer(tmp_path / "f.zip", address, **transfer_of_other).run()
    assert (tmp_path / ".f.zip.part").read_bytes() == OTHER[: (len(OTHER) + 1) // 2]
    mirror.files["f.zip"], mirror.faults["f.zip"] = GOOD, [""]
    fetch(**known)


def test_parts_of_several_addresses_make_one_file_if_its_sum_is_known(fetch, mirror, monkeypatch):
    monkeypatch.setattr(transfer, "_MOST_CONNECTIONS", 1)
    mirror.faults["f.zip"] = ["cut"]
    fetch("f.zip", "real/f.zip")
    assert mirror.asked[1] == ("real/f.zip", f"bytes={(len(GOOD) + 1) // 2}-", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (404, "404 Not Found"),
        (403, "403 Forbidden"),
        (500, "500 Internal Server Error, 3 times in a row"),
        ("html", "a web page comes in place of the file"),
        ("page", "what comes is no zip archive"),
        ("loop", "Exceeded 30 redirects"),
        ("drip", "bytes in 0.2 s"),
    ],
)
def test_the_next_address_is_taken_and_both_are_named(fetch, mirror, fault, reason, capsys):
    mirror.files["bad/f.zip"], mirror.faults["bad/f.zip"] = GOOD, [fault]
    fetch("bad/f.zip", "f.zip", size=None, stall_s=0.2)
    assert reason in capsys.readouterr().out


def test_a_wrong_sum_leaves_nothing_and_the_next_address_is_taken(fetch, mirror, capsys):
    mirror.files["bad/f.zip"] = OTHER
    fetch("bad/f.zip", "f.zip")
    assert "bad/f.zip: f.zip: another sum" in capsys.readouterr().out
    assert mirror.asked[1] == ("f.zip", None, None)


def test_another_size_is_refused_before_it_is_fetched(fetch, mirror, capsys):
    mirror.files["bad/f.zip"] = OTHER + b"x"
    fetch("bad/f.zip", "f.zip")
    assert f"holds {len(OTHER) + 1} bytes, not {len(GOOD)}" in capsys.readouterr().out


def test_a_server_that_sends_more_than_there_is_fills_no_disk(fetch, mirror, capsys):
    mirror.files["bad/f.zip"], mirror.faults["bad/f.zip"] = GOOD + b"x" * 500_000, ["no length"]
    fetch("bad/f.zip", "f.zip")
    assert f"bad/f.zip: sends more than {len(GOOD)} bytes" in capsys.readouterr().out


def test_a_quiet_command_says_nothing_of_its_progress(fetch, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "_EVERY", (0.0, 0.0))
    monkeypatch.setattr(transfer.terminal, "settings", transfer.terminal.Settings(is_quiet=True))
    fetch()
    assert capsys.readouterr() == ("", "")


def test_without_a_good_address_nothing_has_the_files_name(mirror, tmp_path):
    mirror.faults["f.zip"] = ["cut", 404]
    with pytest.raises(StoppedError) as stopped:
        Transfer(tmp_path / "f.zip", [mirror.address + "f.zip"], check_sum).run()
    assert "127.0.0.1" in str(stopped.value) and "404 Not Found" in str(stopped.value)
    assert "download.from=FOLDER" in str(stopped.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".f.zip.part", ".f.zip.part.json"]


def test_a_server_that_is_not_there_is_tried_three_times(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "_FIRST_WAIT", 0.0)
    with pytest.raises(StoppedError, match="Connection refused, 3 times in a row"):
        Transfer(tmp_path / "f.zip", ["http://127.0.0.1:9/f.zip"], check_sum).run()
    assert capsys.readouterr().out.count("Connection refused; going on in") == 2


def test_a_whole_part_needs_its_end_alone(fetch, mirror, tmp_path):
    (tmp_path / ".f.zip.part").write_bytes(GOOD)
    fetch()
    assert mirror.asked == [("f.zip", f"bytes={len(GOOD)}-", None)]


def test_damaged_parts_of_an_earlier_command_are_thrown_away(fetch, mirror, tmp_path):
    (tmp_path / ".f.zip.part").write_bytes(b"x" * HALF)
    fetch()
    assert [one for _, one, _ in mirror.asked] == [f"bytes={HALF}-", None]
    (tmp_path / "f.zip").unlink()
    (tmp_path / ".f.zip.part").write_bytes(GOOD + b"too long")
    fetch()


def test_room_is_asked_for_before_anything_is_written(fetch, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=(64 << 20) + len(GOOD) - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskFullError, match=r"f\.zip needs 0 MB more and 67 MB to spare"):
        fetch()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_ends_it_and_keeps_what_has_arrived(fetch, tmp_path, monkeypatch):
    class Full(transfer.Sink):
        def write(self, data):
            if os.fstat(self.fileno()).st_size > 1000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "Sink", Full)
        with pytest.raises(OSError, match="No space left"):
            fetch()
    assert (tmp_path / ".f.zip.part").stat().st_size > 1000
    fetch()


def test_secrets_of_an_address_are_neither_shown_nor_kept(mirror, tmp_path, capsys):
    mirror.faults["f.zip?token=hush"] = ["cut", 404]
    mirror.files["f.zip?token=hush"] = GOOD
    address = f"{mirror.address.replace('//', '//me:hush@')}f.zip?token=hush"
    with pytest.raises(StoppedError) as stopped:
        Transfer(tmp_path / "f.zip", [address], check_sum).run()
    kept = (tmp_path / ".f.zip.part.json").read_text()
    assert "hush" not in str(stopped.value) + capsys.readouterr().out + kept
