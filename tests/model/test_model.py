"""Finding and verifying a model file."""

from __future__ import annotations

import os

import pytest

from cfdist.errors import UserError
from cfdist.files import sha256_of
from cfdist.model import locate_model, verify_model


def test_the_packaged_weights_are_the_known_ones(compose):
    weights = compose().model.weights
    path = locate_model(weights.path)
    assert verify_model(path, weights.size, weights.sha256) == weights.sha256


def test_a_missing_file_folder_and_package_are_named(tmp_path):
    with pytest.raises(UserError, match=r"^model\.path=.*none\.onnx: does not exist; give"):
        locate_model(str(tmp_path / "none.onnx"))
    with pytest.raises(UserError, match="is a folder"):
        locate_model(str(tmp_path))
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(UserError, match=r"pipe\.onnx: is a named pipe, not a file"):
        locate_model(str(tmp_path / "pipe.onnx"))
    for package in ("no_such_package", "no_such.package", ""):
        with pytest.raises(UserError, match=rf"package '{package}' .* is not installed"):
            locate_model(f"package://{package}/x.onnx")


def test_the_key_that_was_set_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^reference=nope\.onnx: "):
        locate_model("nope.onnx", "reference")


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"abc")
    digest = sha256_of(path)
    assert verify_model(path, None, None) == digest
    assert verify_model(path, 3, digest.upper()) == digest
    with pytest.raises(UserError, match="3 bytes, expected 4"):
        verify_model(path, 4, None)
    with pytest.raises(UserError, match="sha256"):
        verify_model(path, 3, "0" * 64)
