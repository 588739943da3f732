"""What a checkpoint may be, and how the rest is refused."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed")

from cfdist.errors import UserError  # noqa: E402
from cfdist.network.centerface import CenterFace  # noqa: E402
from cfdist.network.checkpoint import load_checkpoint, load_network  # noqa: E402


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return CenterFace().state_dict()


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
        lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    ],
    ids=["plain", "with epoch", "module.", "module.module.", "no counters"],
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
    assert len(stored) == len(state_dict_shapes)
    assert all(
        torch.equal(value, stored[f"module.{name}"]) for name, value in loaded.state_dict().items()
    )


def test_missing_unexpected_and_misshapen_are_listed(tmp_path, state):
    broken = dict(state)
    del broken["wh.bias"]
    broken["wh.scale"] = torch.zeros(1)
    broken["hm.0.weight"] = torch.zeros(80, 24, 1, 1)
    message = refusal(tmp_path / "m.pth", broken)
    assert "missing wh.bias" in message
    assert "unexpected wh.scale" in message
    assert "misshapen hm.0.weight 80x24x1x1 instead of 1x24x1x1" in message


def test_long_lists_are_cut(tmp_path):
    message = refusal(tmp_path / "m.pth", {f"fc{i}.weight": torch.zeros(2) for i in range(20)})
    assert "fc7.weight and 12 more" in message
    assert "fc8.weight" not in message
    assert len(message) < 1500


def test_other_variant_is_refused_and_the_network_left_alone(tmp_path, state):
    path = tmp_path / "m.pth"
    torch.save(state, path)
    network = CenterFace("relu", depthwise_ups=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(UserError, match=r"misshapen dla_up\.up_0\.up\.0\.weight 24x1x2x2 instead"):
        load_checkpoint(path, network)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


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
