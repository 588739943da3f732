"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from cfdist.files import atomic_write, expanded, sha256_of, write_text


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
