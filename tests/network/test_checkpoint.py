"""What a checkpoint may be, and how the rest is refused."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.errors import UserError  # noqa: E402
from cfdist.network.centerface import CenterFace  # noqa: E402
from cfdist.network.checkpoint import load_network  # noqa: E402


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return CenterFace("centerface_pytorch", 24).state_dict()


def assert_loads(path, state):
    loaded = load_network(path, "centerface_pytorch").state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def refusal(path, content=None) -> str:
    if content is not None:
        torch.save(content, path)
    with pytest.raises(UserError) as caught:
        load_network(path, "centerface_pytorch")
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-3, "state": {}}},
        lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        lambda state: {f"module.module.{k}": v for k, v in state.items()},
        lambda state: {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {f"module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {f"_orig_mod.module._orig_mod.{k}": v for k, v in state.items()},
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=[
        *("plain", "with epoch", "module.", "module.module.", "_orig_mod.", "module._orig_mod."),
        *("_orig_mod.module._orig_mod.", "no counters"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_forms_of_a_checkpoint(tmp_path, state, wrap, zipped):
    path = tmp_path / "model.pth"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    assert_loads(path, state)


def test_published_format(seed_checkpoint, state_dict_shapes):
    loaded = load_network(seed_checkpoint, "centerface_pytorch")
    assert not loaded.training
    stored = torch.load(seed_checkpoint, weights_only=True)["state_dict"]
    stored = {name.removeprefix("module."): value for name, value in stored.items()}
    assert stored.keys() == set(state_dict_shapes)
    assert all(torch.equal(value, stored[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("convention", ["centerface", "centerface_pytorch"])
@pytest.mark.parametrize("width", [1, 7, 24, 256])
def test_the_neck_is_as_wide_as_the_weights_say(tmp_path, convention, width):
    state = CenterFace(convention, width).state_dict()
    torch.save(state, tmp_path / "m.pth")
    loaded = load_network(tmp_path / "m.pth", convention).state_dict()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert loaded.keys() == state.keys()


def test_necks_that_disagree(tmp_path, state):
    wide = CenterFace("centerface_pytorch", 64).state_dict()
    mixed = {**state, **{name: wide[name] for name in wide if name.startswith("dla_up.up_1.up.")}}
    message = refusal(tmp_path / "m.pth", mixed)
    assert "misshapen dla_up.up_1.up.0.weight 64x1x2x2 instead of 24x1x2x2, dla_up.up_1" in message
    assert len(message) < 1000


@pytest.mark.parametrize("shape", [(24, 320), (24,), (), (24, 320, 1, 1, 1), (24, 320, 3, 3)])
def test_a_neck_weight_of_another_rank(tmp_path, state, shape):
    message = refusal(tmp_path / "m.pth", {**state, "dla_up.conv.0.weight": torch.zeros(shape)})
    assert "misshapen dla_up.conv.0.weight" in message
    assert "instead of 24x320x1x1" in message


def test_a_neck_without_channels(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, of the empty tensors
        state = CenterFace("centerface", 0).state_dict()
    path = tmp_path / "m.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"dla_up\.conv\.0\.weight 0x320x1x1 instead of 1x320"):
        load_network(path, "centerface")


def test_another_number_of_channels_in_a_head(tmp_path, state):
    two = {**state, "hm.0.weight": torch.zeros(2, 24, 1, 1), "hm.0.bias": torch.zeros(2)}
    assert (
        "misshapen hm.0.weight 2x24x1x1 instead of 1x24x1x1, hm.0.bias 2 instead of 1;"
        in refusal(tmp_path / "m.pth", two)
    )


def test_other_heads(tmp_path, state):
    fewer = {name: value for name, value in state.items() if not name.startswith("landmarks")}
    message = refusal(tmp_path / "m.pth", fewer)
    assert "missing landmarks.weight, landmarks.bias; give" in message
    more = {**state, "hps.weight": torch.zeros(34, 24, 1, 1), "hps.bias": torch.zeros(34)}
    assert "unexpected hps.weight, hps.bias; give" in refusal(tmp_path / "m.pth", more)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floats_become_float32(tmp_path, state, dtype):
    path = tmp_path / "m.pth"
    other = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    torch.save(other, path)
    loaded = load_network(path, "centerface_pytorch").state_dict()
    for name, value in loaded.items():
        assert value.dtype == state[name].dtype
        assert torch.equal(value, other[name].to(value.dtype)), name


def test_a_float64_too_large_for_float32(tmp_path, state):
    large = {**state, "wh.bias": torch.tensor([1.0, 1e300], dtype=torch.float64)}
    assert "infinite values in wh.bias" in refusal(tmp_path / "m.pth", large)


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of its quantised tensors
@pytest.mark.parametrize(
    "change",
    [
        lambda bias: bias.to(torch.int8),
        lambda bias: bias.to(torch.complex64),
        lambda bias: bias.to(torch.float8_e4m3fn),
        lambda bias: torch.quantize_per_tensor(bias, 0.1, 0, torch.qint8),
        lambda bias: bias.to_sparse(),
        lambda bias: bias.to("meta"),
    ],
    ids=["int8", "complex64", "float8", "qint8", "sparse", "meta"],
)
def test_weights_that_are_no_plain_floats(tmp_path, state, change):
    message = refusal(tmp_path / "m.pth", {**state, "wh.bias": change(state["wh.bias"])})
    assert "no plain floats: wh.bias (torch." in message


@pytest.mark.parametrize("key", ["model", "model_state_dict", "ema"])
def test_weights_under_another_name(tmp_path, state, key):
    message = refusal(tmp_path / "m.pth", {"epoch": 3, key: state, "optimizer": {"state": {}}})
    assert f"there are weights under '{key}'" in message
    assert f"torch.save({{'state_dict': torch.load(old_path)['{key}']}}, path)" in message


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of its own formats
def test_programs_are_named(tmp_path):
    layer, example = torch.nn.Conv2d(3, 2, 1), (torch.zeros(1, 3, 4, 4),)
    torch.jit.save(torch.jit.trace(layer, example), tmp_path / "script.pth")
    message = refusal(tmp_path / "script.pth")
    assert "is a TorchScript archive" in message
    assert "torch.jit.load(old_path).state_dict()" in message
    torch.export.save(torch.export.export(layer, example), tmp_path / "program.pt2")
    message = refusal(tmp_path / "program.pt2")
    assert "is a torch.export archive" in message
    assert "torch.export.load(old_path).state_dict}" in message


def test_missing_and_unexpected_are_listed(tmp_path, state):
    broken = dict(state)
    del broken["wh.bias"]
    broken["wh.scale"] = torch.zeros(1)
    message = refusal(tmp_path / "m.pth", broken)
    assert "missing wh.bias" in message
    assert "unexpected wh.scale" in message


def test_long_lists_are_cut(tmp_path):
    message = refusal(tmp_path / "m.pth", {f"fc{i}.weight": torch.zeros(2) for i in range(20)})
    assert "fc7.weight and 12 more" in message
    assert "fc8.weight" not in message
    assert len(message) < 1500


def test_other_variant_is_refused(tmp_path, state):
    path = tmp_path / "m.pth"
    torch.save(state, path)
    with pytest.raises(UserError, match=r"misshapen dla_up\.up_0\.up\.0\.weight 24x1x2x2 instead"):
        load_network(path, "centerface")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_not_finite(tmp_path, state, bad):
    broken = {**state, "wh.bias": torch.tensor([0.0, bad])}
    assert "NaN or infinite values in wh.bias" in refusal(tmp_path / "m.pth", broken)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [1, 2],
        {"epoch": 4},
        {"state_dict": None},
        {"state_dict": [1]},
        torch.zeros(3),
        {1: torch.zeros(1)},
    ],
    ids=repr,
)
def test_no_weights(tmp_path, content):
    assert "holds no weights" in refusal(tmp_path / "m.pth", content)


def test_code_is_not_run(tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    assert "can run code" in refusal(tmp_path / "m.pth", {"state_dict": {}, "args": Evil()})
    assert not marker.exists()


def test_numpy_inside(tmp_path, state):
    message = refusal(tmp_path / "m.pth", {"state_dict": state, "best": np.float64(0.9)})
    assert "torch.save({'state_dict'" in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"<!DOCTYPE html><html></html>",
        b"PK\x03\x04 cut short",
        b"\x08\x03onnx",
        bytes(range(256)) * 20,
        pickle.dumps({"state_dict": {}}),
    ],
    ids=["empty", "lfs", "html", "zip", "onnx", "bytes", "pickle"],
)
def test_not_a_checkpoint(tmp_path, content):
    path = tmp_path / "m.pth"
    path.write_bytes(content)
    assert "not a PyTorch checkpoint" in refusal(path)


def test_truncated(tmp_path, state):
    path = tmp_path / "m.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "damaged" in refusal(path)


def test_not_a_file(tmp_path):
    assert "No such file" in refusal(tmp_path / "nowhere.pth")
    assert "cannot be read" in refusal(tmp_path)
