"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import stat

import pytest

from cfdist.files import atomic_write, removed_on_failure, sha256_of, write_text


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
