"""OM files made by a played ATC: the command, the AIPP text, what is made anew."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.ascend.atc import (
    OM_HEADER_BYTES,
    AtcCall,
    AtcModel,
    aipp_config,
    atc_command,
    convert,
    image_sizes,
    is_om,
    made_for_sizes,
    toolkit_version,
)
from cfdist.errors import UserError
from cfdist.files import sha256_of
from cfdist.preprocess import InputContract, to_model_input
from tests.fakes.ascend import install_atc, install_double, small_network
from tests.fakes.atc import RefusalError, parse
from tests.fakes.atc import convert as atc_convert

MEAN = (0.40789654, 0.44719302, 0.47026115)
STD = (0.28863828, 0.27408164, 0.27809835)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An `atc` on PATH; the file lists its calls."""
    install_double(monkeypatch)
    return install_atc(monkeypatch, tmp_path / "bin")


@pytest.fixture
def model(tmp_path: Path) -> AtcModel:
    path = tmp_path / "CenterFace.onnx"
    path.write_bytes(small_network())
    return AtcModel(path, "image", 64, 64, "Ascend310P3")


@pytest.fixture(scope="session")
def aipp(spec):
    """The AIPP text of a normalisation, for inputs of 64x64."""

    def write(mean=MEAN, std=STD, scale=1 / 255, color="BGR", **sides: int) -> str:
        sides = {"height": 64, "width": 64} | sides
        return aipp_config(spec("a.onnx", mean=mean, std=std, scale=scale, color=color, **sides))

    return write


@pytest.fixture
def aipp_model(model: AtcModel, aipp) -> AtcModel:
    return replace(model, aipp=aipp())


def number_of_calls(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.exists() else 0


def test_command_is_the_guides():
    model = AtcModel(Path("/m/CenterFace.onnx"), "image", 800, 800, "Ascend310P3", log="debug")
    om = Path("/oms/CenterFace_bs1.om")
    command = atc_command(model, om, 1)
    assert shlex.join(command) == (
        "atc --framework=5 --model=/m/CenterFace.onnx --input_format=NCHW "
        "--input_shape=image:1,3,800,800 --output=CenterFace_bs1 --log=debug "
        "--soc_version=Ascend310P3"
    )
    with_file = atc_command(replace(model, aipp="aipp_op{}"), om, 1)
    conf = "--insert_op_conf=/oms/CenterFace.aippconfig"
    assert with_file == [*command, conf, "--enable_small_channel=1"]


def test_aipp_of_the_training_code_has_the_published_digits(compose, aipp):
    model = compose("model=centerface_pytorch").model
    assert (tuple(model.mean), tuple(model.std)) == (MEAN, STD)
    text = aipp(scale=model.scale, color=model.color, height=model.height, width=model.width)
    assert text.split() == [
        "aipp_op{",
        "aipp_mode:static",
        "input_format:RGB888_U8",
        "src_image_size_w:800",
        "src_image_size_h:800",
        "crop:false",
        "min_chn_0:104",
        "min_chn_1:114",
        "min_chn_2:120",
        "var_reci_chn_0:0.0135864",
        "var_reci_chn_1:0.0143080",
        "var_reci_chn_2:0.0141014",
        "}",
    ]


def test_aipp_of_a_raw_rgb_network_only_swaps(aipp):
    words = aipp((0, 0, 0), (1, 1, 1), 1.0, "RGB", height=480, width=640).split()
    assert "rbuv_swap_switch:true" in words
    assert {"src_image_size_w:640", "src_image_size_h:480"} <= set(words)
    assert {"min_chn_0:0", "var_reci_chn_2:1.0000000"} <= set(words)


@given(
    mean=st.tuples(*[st.floats(0, 1)] * 3),
    std=st.tuples(*[st.floats(0.1, 1)] * 3),
    color=st.sampled_from(["BGR", "RGB"]),
    unit=st.sampled_from([1.0, 255.0]),
)
def test_aipp_normalises_as_the_host_does(aipp, mean, std, color, unit):
    mean, std = tuple(m * 255 / unit for m in mean), tuple(s * 255 / unit for s in std)
    text = aipp(mean, std, 1 / unit, color, height=2, width=2)
    values = dict(line.strip().split(":") for line in text.splitlines() if ":" in line)
    picture = np.array([[[[0, 10, 255], [1, 2, 3]], [[7, 77, 177], [90, 80, 70]]]], np.uint8)
    seen = picture[..., ::-1] if "rbuv_swap_switch" in values else picture
    low = np.array([float(values[f"min_chn_{i}"]) for i in range(3)])
    factor = np.array([float(values[f"var_reci_chn_{i}"]) for i in range(3)])
    contract = InputContract(2, 2, 1, "float32", "NCHW", color, mean, std, 1 / unit)
    on_host = to_model_input(picture, contract).transpose(0, 2, 3, 1)
    # Half a grey level from the rounded minimum, the rest from seven decimals.
    assert np.all(np.abs((seen - low) * factor - on_host) <= 0.5 * factor + 255e-7)


@pytest.mark.parametrize(("mean", "std"), [((1.1, 0, 0), (1, 1, 1)), ((0, 0, 0), (0, 1, 1))])
def test_aipp_that_the_chip_cannot_do(aipp, mean, std):
    with pytest.raises(UserError, match="AIPP"):
        aipp(mean, std)


def test_one_om_a_batch_size(calls, model, tmp_path):
    results = convert(model, tmp_path / "om", [1, 4])
    assert [(r.batch, r.om.name, r.made) for r in results] == [
        (1, "CenterFace_bs1.om", True),
        (4, "CenterFace_bs4.om", True),
    ]
    assert all(r.om.read_bytes()[:4] == b"IMOD" for r in results)
    made = {path.name for path in (tmp_path / "om").iterdir()}
    assert made == {f"CenterFace_bs{b}.om{end}" for b in (1, 4) for end in ("", ".json")}
    assert [f"atc {line}" for line in calls.read_text().splitlines()] == [
        r.command for r in results
    ]


def test_aipp_om_takes_bytes(calls, aipp_model, tmp_path):
    (result,) = convert(aipp_model, tmp_path / "om", [2])
    assert result.om.name == "CenterFace_bs2_aipp.om"
    from ais_bench.infer.interface import InferSession

    (picture,) = InferSession(0, str(result.om)).get_inputs()
    assert (picture.datatype.name, picture.shape) == ("uint8", [2, 64, 64, 3])


def test_second_call_does_nothing(calls, aipp_model, tmp_path):
    convert(aipp_model, tmp_path / "om", [1, 2])
    again = convert(aipp_model, tmp_path / "om", [1, 2])
    assert [r.made for r in again] == [False, False]
    assert number_of_calls(calls) == 2


def test_change_makes_anew(calls, model, aipp_model, aipp, tmp_path):
    out = tmp_path / "om"
    (first,) = convert(model, out, [1])

    model.onnx.write_bytes(small_network(channels=(1, 2, 2, 10), names=("a", "b", "c", "d")))
    assert convert(model, out, [1])[0].made, "another ONNX"

    other_chip = replace(model, soc_version="Ascend910B4")
    assert convert(other_chip, out, [1])[0].made, "another command"

    first.om.write_bytes(first.om.read_bytes()[:-1])
    assert convert(other_chip, out, [1])[0].made, "a damaged OM"

    convert(aipp_model, out, [1])
    other_mean = replace(model, aipp=aipp(mean=(0, 0, 0)))
    assert convert(other_mean, out, [1])[0].made, "another normalisation"


def test_sidecar_says_how_it_was_made(calls, model, tmp_path, monkeypatch):
    (tmp_path / "compiler").mkdir()
    (tmp_path / "compiler" / "version.info").write_text("Version=6.0.RC1\nversion_dir=6.0\n")
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    (result,) = convert(model, tmp_path / "om", [1])
    sidecar = json.loads(Path(f"{result.om}.json").read_text())
    assert shlex.join(sidecar["command"]) == result.command
    assert sidecar["toolkit_version"] == "6.0.RC1"
    assert len(sidecar["onnx_sha256"]) == len(sidecar["om_sha256"]) == 64


def test_unknown_toolkit_version(monkeypatch, tmp_path):
    monkeypatch.delenv("ASCEND_HOME_PATH", raising=False)
    monkeypatch.setenv("ASCEND_TOOLKIT_HOME", str(tmp_path))
    assert toolkit_version() is None


def test_dry_run_says_the_command_and_writes_what_it_names(model, aipp_model, tmp_path, calls):
    dry = convert(aipp_model, tmp_path / "om", [16], dry_run=True)
    assert not dry[0].made
    assert [path.name for path in (tmp_path / "om").iterdir()] == ["CenterFace.aippconfig"]
    assert number_of_calls(calls) == 0
    assert dry[0].command == (
        f"atc --framework=5 --model={model.onnx} --input_format=NCHW "
        "--input_shape=image:16,3,64,64 --output=CenterFace_bs16_aipp --log=error "
        f"--soc_version=Ascend310P3 --insert_op_conf={tmp_path}/om/CenterFace.aippconfig "
        "--enable_small_channel=1"
    )
    (real,) = convert(aipp_model, tmp_path / "om", [16])
    assert real.command == dry[0].command == f"atc {calls.read_text().strip()}"


def test_failing_atc_leaves_what_was_there(calls, model, tmp_path, monkeypatch):
    (good,) = convert(model, tmp_path / "om", [1])
    content = good.om.read_bytes()
    model.onnx.write_bytes(b"no onnx")
    monkeypatch.setenv("FAKE_ATC_FAIL", "E19999: Inner Error!")
    with pytest.raises(
        UserError, match=r"CenterFace_bs1\.om failed with exit code 1: E19999: Inner"
    ):
        convert(model, tmp_path / "om", [1, 2])
    assert good.om.read_bytes() == content
    assert {p.name for p in (tmp_path / "om").iterdir()} == {good.om.name, f"{good.om.name}.json"}


def own_atc(monkeypatch, tmp_path, script: str) -> None:
    """Put an `atc` on PATH that is a shell script; `$om` is the file that it should write."""
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    (folder / "atc").write_text(
        '#!/bin/bash\nfor a in "$@"; do case $a in --output=*) om=${a#--output=}.om;; esac; done\n'
        + script
    )
    (folder / "atc").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.fixture
def copied(aipp_model) -> AtcModel:
    """A model whose ONNX and AIPP file `convert` has to write."""
    path = aipp_model.onnx.parent / "om" / "copy" / "CenterFace.onnx"
    return replace(aipp_model, onnx=path, content=aipp_model.onnx.read_bytes())


@pytest.mark.parametrize("script", ["echo 'E10001: bad'; exit 1", ': >$om; echo "success"', None])
def test_a_refused_convert_leaves_nothing(monkeypatch, copied, tmp_path, script):
    if script is None:
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        own_atc(monkeypatch, tmp_path, script)
    with pytest.raises(UserError):
        convert(copied, copied.onnx.parent, [1, 4])
    assert not (tmp_path / "om").exists()


def test_a_refused_convert_restores_what_an_earlier_one_wrote(calls, monkeypatch, copied):
    folder = copied.onnx.parent
    convert(copied, folder, [1])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert copied.onnx.name in before
    monkeypatch.setenv("FAKE_ATC_FAIL", "E10001: no")
    other = replace(copied, content=small_network(names=("a", "b", "c", "d")), aipp="aipp_op{}")
    with pytest.raises(UserError, match="E10001: no"):
        convert(other, folder, [1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_finished_is_named_and_kept(monkeypatch, calls, copied, tmp_path):
    folder = copied.onnx.parent
    convert(copied, folder, [1])
    monkeypatch.setenv("FAKE_ATC_FAIL", "E10001: no")
    with pytest.raises(UserError, match=r"and kept: CenterFace_bs1_aipp\.om$"):
        convert(copied, folder, [1, 4])
    assert copied.onnx.is_file()
    assert is_om(folder / "CenterFace_bs1_aipp.om")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("printf IMOD123456 >$om", "left CenterFace_bs1.om of 10 bytes"),
        (": >$om", "left CenterFace_bs1.om of 0 bytes"),
        ("head -c 1000 /dev/zero >$om", "left CenterFace_bs1.om of 1000 bytes"),
        ("echo ATC run success", "left no OM; it said: ATC run success"),
        ("for i in 1 2; do cp om a$i.om; done; touch a1.om a2.om", "left a1.om of .*, a2.om of"),
        ("head -c 1000 /dev/zero >$om; kill -SEGV $$", "bs1.om was killed by SIGSEGV"),
    ],
)
def test_what_is_no_om_is_not_made(monkeypatch, model, tmp_path, script, words):
    own_atc(monkeypatch, tmp_path, script)
    with pytest.raises(UserError, match=words):
        convert(model, tmp_path / "om", [1])
    assert not (tmp_path / "om").exists()


def test_an_om_of_a_platforms_name_is_found(calls, model, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_ATC_PLATFORM", "_linux_aarch64")
    (result,) = convert(model, tmp_path / "om", [4])
    assert result.om.name == "CenterFace_bs4.om"
    assert is_om(result.om)
    assert not convert(model, tmp_path / "om", [4])[0].made


@given(st.binary(max_size=2 * OM_HEADER_BYTES))
def test_an_om_has_its_first_bytes_and_more_than_a_header(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.om"
    for start in (b"", b"IMOD"):
        path.write_bytes(start + content)
        is_long = len(start + content) > OM_HEADER_BYTES
        assert is_om(path) == (is_long and (start + content)[:4] == b"IMOD")
    assert not is_om(path / "none")


@pytest.mark.slow
def test_an_atc_that_hangs_is_killed(monkeypatch, model, tmp_path):
    own_atc(monkeypatch, tmp_path, "echo at work; sleep 100")
    call = AtcCall(tmp_path, 0.5)
    with pytest.raises(UserError, match=r"no answer within 0\.5 s .*at work.*atc_bs1\.log"):
        convert(model, tmp_path / "om", [1], call=call)
    assert not (tmp_path / "om").exists()


def test_the_progress_and_the_log(calls, model, tmp_path):
    lines: list[str] = []
    call = AtcCall(tmp_path, 60, lines.append)
    convert(model, tmp_path / "om", [1], call=call)
    assert "ATC run success" in (tmp_path / "atc_bs1.log").read_text()
    convert(model, tmp_path / "om", [1, 4], call=call)
    first, last = tmp_path / "om" / "CenterFace_bs1.om", tmp_path / "om" / "CenterFace_bs4.om"
    assert lines[0] == f"{first} (1 of 1): ATC works on it"
    assert lines[1].startswith(f"{first} (1 of 1): made in ")
    assert lines[2:4] == [f"{first} (1 of 2): up to date", f"{last} (2 of 2): ATC works on it"]
    assert lines[4].startswith(f"{last} (2 of 2): made in ")


def test_further_options_are_passed_and_part_of_the_recipe(calls, model, tmp_path):
    extra = ("--precision_mode=force_fp16", "--buffer_optimize=a,b c")
    changed = replace(model, extra=extra)
    (result,) = convert(changed, tmp_path / "om", [1])
    assert shlex.split(calls.read_text())[-2:] == list(extra)
    sidecar = json.loads(Path(f"{result.om}.json").read_text())
    assert sidecar["command"][-2:] == list(extra)
    assert not convert(changed, tmp_path / "om", [1])[0].made
    assert convert(model, tmp_path / "om", [1])[0].made


def test_one_om_for_all_batch_sizes(calls, model, aipp_model, tmp_path):
    (result,) = convert(model, tmp_path / "om", [8, 1, 4, 8], dynamic=True)
    assert (result.om.name, result.batch) == ("CenterFace_dynamic.om", (1, 4, 8))
    words = shlex.split(calls.read_text())
    assert {"--input_shape=image:-1,3,64,64", "--dynamic_batch_size=1,4,8"} <= set(words)
    (with_aipp,) = convert(aipp_model, tmp_path / "om", [1, 4], dynamic=True)
    assert with_aipp.om.name == "CenterFace_dynamic_aipp.om"
    from ais_bench.infer.interface import InferSession

    (picture,) = InferSession(0, str(with_aipp.om)).get_inputs()
    assert picture.shape == [-1, 64, 64, 3]
    assert convert(model, tmp_path / "om", [1, 8], dynamic=True)[0].made, "other batch sizes"


@pytest.mark.parametrize("batches", [[4], [4, 4], list(range(1, 102))])
def test_batch_sizes_that_one_om_cannot_have(calls, model, tmp_path, batches):
    with pytest.raises(UserError, match=r"convert\.dynamic: one OM takes 2 to 100"):
        convert(model, tmp_path / "om", batches, dynamic=True)
    assert not (tmp_path / "om").exists()


def test_one_om_for_several_input_sizes(calls, model, spec, tmp_path):
    sizes = image_sizes([(96, 64), (64, 64), (96, 64), (32, 128)], "they have")
    assert sizes == ((32, 128), (64, 64), (96, 64))
    free = onnx.load_from_string(small_network())
    for value in (*free.graph.input, *free.graph.output):
        for axis in (2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
    model.onnx.write_bytes(free.SerializeToString())
    text = aipp_config(spec("a.onnx", mean=MEAN, std=STD, scale=1 / 255), has_sizes=True)
    assert {"src_image_size_w:0", "src_image_size_h:0", "crop:false"} <= set(text.split())
    made = convert(replace(model, sizes=sizes), tmp_path / "om", [1, 4])
    (u8,) = convert(replace(model, sizes=sizes, aipp=text), tmp_path / "om", [4])
    assert [one.om.name for one in made] == [f"CenterFace_bs{b}_sizes.om" for b in (1, 4)]
    assert u8.om.name == "CenterFace_bs4_sizes_aipp.om"
    words = shlex.split(calls.read_text().splitlines()[1])
    option = "--dynamic_image_size=32,128;64,64;96,64"
    assert {"--input_shape=image:4,3,-1,-1", option} <= set(words)
    # The shell takes the semicolons for a part of the word.
    assert option in shlex.split(made[1].command)

    from ais_bench.infer.interface import InferSession

    shapes = [InferSession(0, str(one.om)).get_inputs()[0].shape for one in (made[1], u8)]
    assert shapes == [[4, 3, -1, -1], [4, -1, -1, 3]]
    assert made_for_sizes(made[1].om, sha256_of(made[1].om)) == sizes
    assert made_for_sizes(made[1].om, "another") is None
    (static,) = convert(replace(model, extra=()), tmp_path / "om", [1])
    assert made_for_sizes(static.om, sha256_of(static.om)) == ()
    sidecar = Path(f"{static.om}.json")
    for text in ("[]", '{"om_sha256": 1}', "{", f'{{"om_sha256": "x", "command": ["{option}"]}}'):
        sidecar.write_text(text)
        assert made_for_sizes(static.om, "y") is None


@pytest.mark.parametrize(
    ("sizes", "found"),
    [([(64, 64)] * 2, r"1 \(64x64\)"), ([(32, 32 * n) for n in range(101)], "101")],
)
def test_input_sizes_that_one_om_cannot_have(sizes, found):
    with pytest.raises(UserError, match=rf"2 to 100 input sizes, the pictures need {found};"):
        image_sizes(sizes, "the pictures need")


def test_the_played_atc_is_strict_about_sizes(calls):
    def options(**changes: str) -> dict[str, str]:
        return {"input_shape": "image:4,3,-1,-1", "model": "absent.onnx", "output": "a"} | changes

    for wrong in (
        {},
        {"dynamic_image_size": "64,64"},
        {"dynamic_image_size": "64,64;64,64"},
        {"dynamic_image_size": "64x64;96x96"},
        {"dynamic_image_size": "64,64;96,96", "input_shape": "image:4,3,64,64"},
        {"dynamic_image_size": "64,64;96,96", "dynamic_batch_size": "1,2"},
    ):
        with pytest.raises(RefusalError, match=r"E100(12|09|18|36)"):
            atc_convert(options(**wrong))


def test_atc_that_is_not_there(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"`atc` is not on PATH; source set_env\.sh"):
        convert(model, tmp_path / "om", [1])
    assert not (tmp_path / "om").exists()


def test_onnx_that_is_not_there(calls, model, tmp_path):
    model.onnx.unlink()
    with pytest.raises(UserError, match=r"CenterFace\.onnx cannot be read"):
        convert(model, tmp_path / "om", [1])


def test_folder_that_cannot_be_written(calls, model, tmp_path):
    (tmp_path / "om").write_text("a file")
    with pytest.raises(UserError, match="cannot be read or written"):
        convert(model, tmp_path / "om", [1])


def test_names_with_spaces_and_quotes(calls, tmp_path):
    path = tmp_path / "my 'net' $HOME.onnx"
    path.write_bytes(small_network())
    model = AtcModel(path, "image", 64, 64, "Ascend310P3")
    (result,) = convert(model, tmp_path / "o m", [1])
    assert result.om.name == "my 'net' $HOME_bs1.om"
    assert shlex.split(result.command)[2] == f"--model={path}"


def test_the_played_atc_is_strict():
    model = AtcModel(Path("a.onnx"), "image", 64, 64, "Ascend310P3")
    command = atc_command(model, Path("a.om"), 1)[1:]
    spaced = [word for argument in command for word in argument.split("=", 1)]
    assert parse(command) == parse(spaced)
    for wrong in (
        command[1:],
        [*command, "--unknown=1"],
        [*command, command[0]],
        ["--framework=3", *command[1:]],
        [*command[:-1], "--soc_version=310P3"],
    ):
        with pytest.raises(RefusalError):
            parse(wrong)


def test_a_damaged_sidecar_makes_the_om_anew(model, calls, tmp_path):
    out = tmp_path / "out"
    convert(model, out, [1])
    damaged = ["[" * 100_000, "[]", "{}", "{", '{"onnx_sha256": 1', "7", ""]
    for sidecar in damaged:
        (out / "CenterFace_bs1.om.json").write_text(sidecar)
        assert convert(model, out, [1])[0].made
        assert not convert(model, out, [1])[0].made
    assert number_of_calls(calls) == 1 + len(damaged)
