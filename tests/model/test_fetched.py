"""A model at a URI, with the files of its weights."""

from __future__ import annotations

import pytest

from cfdist.errors import UserError
from cfdist.model import locate_model, model_sha256
from cfdist.model.fetched import fetch_model, is_fetched
from tests.fakes import onnx_forms


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_model_is_fetched_with_the_files_of_its_weights(tmp_path, spec):
    there = tmp_path / "there"
    there.mkdir()
    model = onnx_forms.external(spec().path, there / "m.onnx")
    path = locate_model(f"file://{there}/m.onnx")
    assert path.name == "m.onnx"
    assert is_fetched(path)
    assert not is_fetched(model)
    assert model_sha256(path) == model_sha256(model)
    weights = [one for one in there.iterdir() if one != model]
    assert weights
    weights[0].unlink()
    for one in path.parent.iterdir():
        one.unlink()
    with pytest.raises(UserError, match="put that file beside the model"):
        model_sha256(fetch_model(f"file://{there}/m.onnx"))


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("file:///nowhere/m.onnx", "cannot be fetched .No such file or directory.; give"),
        ("nosuch://b/m.onnx", "Unrecognized filesystem type"),
        ("s3://key:hush@b/m.onnx", "this URI holds a key or password"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(uri, reason):
    with pytest.raises(UserError, match=f"^candidate.*{reason}") as refused:
        locate_model(uri, "candidate")
    assert "hush" not in str(refused.value)
