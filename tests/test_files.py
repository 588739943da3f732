"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from cfdist import files
from cfdist.errors import DiskFullError, UserError
from cfdist.files import (
    Sink,
    atomic_write,
    check_is_file,
    disk_as_user_error,
    expanded,
    read_file,
    remove_remains,
    removed_on_failure,
    sha256_of,
    write_bytes,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise RuntimeError("killed")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]


def test_parents_are_made_and_others_may_read(tmp_path):
    path = tmp_path / "a" / "b.txt"
    write_text(path, "ä")
    assert path.read_bytes() == "ä".encode()
    assert stat.S_IMODE(path.stat().st_mode) & 0o400


def test_sha256(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 3_000_000)
    assert sha256_of(path) == hashlib.sha256(b"x" * 3_000_000).hexdigest()


def test_what_is_no_file_is_refused_without_waiting(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "link").symlink_to("pipe")
    for name, kind in {
        str(tmp_path / "pipe"): "a named pipe",
        str(tmp_path / "link"): "a named pipe",
        str(tmp_path / "socket"): "a socket",
        str(tmp_path): "a folder",
        "/dev/zero": "a device",
    }.items():
        for read in (check_is_file, read_file):
            with pytest.raises(OSError, match=f"is {kind}, not a file"):
                read(name)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "none")


def test_a_file_is_read_whole_up_to_a_limit(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    assert check_is_file(path).st_size == 100
    assert read_file(path) == b"x" * 100
    with pytest.raises(OSError, match="100 bytes are more than the 99"):
        read_file(path, 99)


def test_an_endless_sparse_file_is_not_read(tmp_path):
    path = tmp_path / "f"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(OSError, match=f"{1 << 40} bytes are more than"):
        read_file(path)


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    with pytest.raises(OSError, match="No space left") as full, atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # of `write`: it knows no name
    assert full.value.filename == str(path)

    def touch(temporary, exist_ok):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(temporary))

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(PermissionError) as refused:
        write_text(path, "{}")
    assert refused.value.filename == str(path)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_are_no_utf_8_are_escapes(tmp_path):
    write_text(tmp_path / "file", "caf\udce9 \u6587")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "caf\\udce9 \u6587"


def test_a_tilde_is_a_home_folder_or_a_name(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/runs") == Path("/home/me/runs")
    assert expanded("~nobody-of-this-name/a") == Path("~nobody-of-this-name/a")
    assert expanded("a~") == Path("a~")


def test_new_folders_go_with_what_failed(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new" / "inner"
    old.mkdir()
    for folder in (old, new):
        with pytest.raises(KeyError), removed_on_failure(folder):
            folder.mkdir(parents=True, exist_ok=True)
            raise KeyError
    assert list(tmp_path.iterdir()) == [old]
    with pytest.raises(KeyError), removed_on_failure(new):
        new.mkdir(parents=True)
        (new.parent / "kept").touch()
        raise KeyError
    assert [path.name for path in new.parent.iterdir()] == ["kept"]


def test_a_write_is_whole_or_raises(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:3]))
    with Sink(tmp_path / "f") as sink:
        assert sink.write(b"0123456789") == 10
    assert (tmp_path / "f").read_bytes() == b"0123456789"

    def full(*_):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "write", full)
    with (
        pytest.raises(DiskFullError, match=r"f: cannot be written \(Disk quota.*free some space"),
        disk_as_user_error(tmp_path),
    ):
        write_bytes(tmp_path / "f", b"0")
    with pytest.raises(UserError, match="see to that disk") as other, disk_as_user_error(tmp_path):
        raise OSError(errno.EIO, "broken")
    assert not isinstance(other.value, DiskFullError)


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".results.json.0a.partial", "results.json", ".lock"):
        (tmp_path / name).touch()
    (tmp_path / ".predictions.partial").mkdir()
    remove_remains(tmp_path)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"results.json", ".lock", ".predictions.partial"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at s3://key:secret@host/b, s3://k:s2@h", "at s3://key:***@host/b, s3://k:***@h"),
        ("s3://b?region=eu&secret_key=a/b&x=1", "s3://b?region=eu&secret_key=***&x=1"),
        ("'abfs://c?sig=abc'", "'abfs://c?sig=***'"),
        ("<td>s3://b?x=1&amp;secret_key=a/b</td>", "<td>s3://b?x=1&amp;secret_key=***</td>"),
        ("token-of-ray is it", "*** is it"),
        ("http://127.0.0.1:8265 a@b", "http://127.0.0.1:8265 a@b"),
        ("https://host/a?tokens", "https://host/a?tokens"),
        ("/a/b:c@d", "/a/b:c@d"),
    ],
)
def test_secrets_are_not_for_people(tmp_path, monkeypatch, text, expected):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token-of-ray")
    assert files.redacted(text) == expected
    files.write_text(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == expected


def test_a_user_without_a_home_folder_has_a_cache_as_well(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert files.user_cache() == tmp_path / "cache" / "cfdist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.user_cache() == Path(os.path.expanduser("~/.cache/cfdist"))
    for home in (Path, lambda _: Path("/proc/1/nowhere")):  # "~" stays as it is
        monkeypatch.setattr(files, "expanded", home)
        monkeypatch.setattr(files.os, "access", lambda path, _: path != Path("/proc/1"))
        monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path))
        folder = files.user_cache()
        assert folder == tmp_path / f"cache_of_cfdist_{os.getuid()}"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    with pytest.raises(UserError, match=r"others can write there.* set XDG_CACHE_HOME"):
        files.user_cache()
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="others can write there"):
        files.user_cache()


def test_a_place_is_probed_and_left_as_it_was(tmp_path):
    files.probe(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        files.probe(tmp_path / "file" / "below")
