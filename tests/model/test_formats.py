"""What a model file is, whatever its name says."""

from __future__ import annotations

import pickle
import zipfile

import pytest

from cfdist.errors import UserError
from cfdist.model import formats
from cfdist.model.formats import format_of, refuse_other_format
from tests.fakes import onnx_forms

ONNX_BACKENDS = ["openvino", "onnxruntime"]


def zip_of(path, *names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"IMOD" + bytes(60), formats.OM),
        (pickle.dumps({"state_dict": {}}, protocol=2), formats.CHECKPOINT),
        (b"\x1c\x00\x00\x00TFL3" + bytes(20), formats.TFLITE),
        (b"\x1c\x00\x00\x00ORTM" + bytes(20), formats.ORT),
        (b"ftrt" + bytes(20), formats.TENSORRT),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), formats.HDF5),
        (b'\x10\x00\x00\x00\x00\x00\x00\x00{"w":{}}', formats.SAFETENSORS),
        (b'<?xml version="1.0"?>\n<net name="m" version="11"></net>', formats.OPENVINO_IR),
        (b'<?xml version="1.0"?><html></html>', None),
        (b"version https://git-lfs.github.com/spec/v1\noid", formats.LFS_POINTER),
        (b"\n<!DOCTYPE html><html>", formats.WEB_PAGE),
        (b"\x1f\x8b\x08" + bytes(20), formats.GZIP),
        (b"PK\x03\x04 cut short", formats.DAMAGED_ZIP),
        (b"", formats.EMPTY),
        (b"nothing in particular", None),
        (bytes(10), formats.ZEROS),
        (b"\x08\x07", None),  # a protobuf, but no graph
    ],
)
def test_formats_by_their_first_bytes(tmp_path, content, expected):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert format_of(path) is expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["m/data.pkl", "m/data/0"], formats.CHECKPOINT),
        (["m/data.pkl", "m/constants.pkl", "m/code/m.py"], formats.TORCH_SCRIPT),
        (["m/archive_format", "m/models/model.json"], formats.TORCH_EXPORT),
        (["picture.jpg"], formats.ZIP),
    ],
)
def test_archives_by_what_is_in_them(tmp_path, names, expected):
    zip_of(tmp_path / "m.om", *names)
    assert format_of(tmp_path / "m.om") is expected


def test_an_onnx_by_its_graph(tmp_path):
    assert format_of(onnx_forms.network(tmp_path / "model.pth")) is formats.ONNX


@pytest.mark.parametrize(
    ("content", "backends", "words"),
    [
        (b"IMOD" + bytes(60), ONNX_BACKENDS, "is an OM of Ascend's ATC.*choose backend=om"),
        (pickle.dumps({}, 2), ["om"], "is a PyTorch checkpoint.*choose backend=torch"),
        (b"ftrt" + bytes(20), ["onnxruntime"], "is a TensorRT engine; give the ONNX"),
        (b"<!doctype html>", ["torch"], "is a web page; download the file itself"),
        (bytes(10), ONNX_BACKENDS, "is a file that begins with zeros.*; copy it anew"),
        (b"IMOB" + bytes(60), ONNX_BACKENDS, "is not an OM of Ascend's ATC, as its name says"),
    ],
)
def test_another_backend_s_file_is_refused_by_name(tmp_path, content, backends, words):
    path = tmp_path / "model.om"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        refuse_other_format(path, backends, "backend=x")


def test_an_onnx_is_refused_where_only_oms_run(tmp_path):
    path = onnx_forms.network(tmp_path / "model.om")
    with pytest.raises(UserError, match=r"is an ONNX.*backend=openvino or backend=onnxruntime"):
        refuse_other_format(path, ["om"], "backend=om")
    refuse_other_format(path, ONNX_BACKENDS, "backend=auto")


def test_what_is_not_known_is_left_to_the_backend(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"nothing in particular")
    assert format_of(path) is None
    refuse_other_format(path, ["om"], "backend=om")
    path.write_bytes(b"ftrt" + bytes(20))
    refuse_other_format(path, ["one_that_registered_itself"], "backend=x")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.onnx: cannot be read \(No such file"):
        format_of(tmp_path / "none.onnx")
