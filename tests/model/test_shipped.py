"""A model's files on a node that does not see the driver's."""

from __future__ import annotations

import onnx
import pytest

from cfdist.model import model_sha256
from cfdist.model.shipped import pack, unpack


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cfdist" / "models"


def test_a_model_comes_with_the_files_of_its_weights(spec, cache, tmp_path):
    folder = tmp_path / "own"
    (folder / "weights").mkdir(parents=True)
    onnx.save_model(
        onnx.load(spec().path),
        folder / "m.onnx",
        save_as_external_data=True,
        location="weights/m.bin",
    )
    path = folder / "m.onnx"
    given = spec(path, sha256=model_sha256(path))
    files = pack(given)
    assert sorted(files) == ["m.onnx", "weights/m.bin"]
    there = unpack(given, files)
    assert there.path == cache / given.sha256 / "m.onnx"
    assert model_sha256(there.path) == given.sha256
    # What another device of the node has put there stays; what was damaged there is put right.
    before = there.path.stat().st_mtime_ns
    (there.path.parent / "weights" / "m.bin").write_bytes(b"x")
    assert unpack(given, files) == there
    assert there.path.stat().st_mtime_ns == before
    assert model_sha256(there.path) == given.sha256


def test_any_other_file_is_one_file(spec, cache, tmp_path):
    (tmp_path / "m.om").write_bytes(b"om")
    given = spec(tmp_path / "m.om")
    assert unpack(given, pack(given)).path.read_bytes() == b"om"
    assert [path.name for path in cache.rglob("*.*")] == ["m.om"]
