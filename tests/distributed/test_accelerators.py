"""What a scheduler allots, what a run takes of it, and what an actor sees."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist.ascend import npu_smi
from cfdist.ascend.npu_smi import Npu
from cfdist.distributed import accelerators
from cfdist.distributed.accelerators import allotted, chosen, resources, settle
from cfdist.errors import UserError

ASCEND = "ASCEND_RT_VISIBLE_DEVICES"
CUDA = "CUDA_VISIBLE_DEVICES"
KINDS = [("npu", ASCEND), ("gpu", CUDA)]


@pytest.mark.parametrize(("kind", "variable"), KINDS)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", []),
        ("NoDevFiles", []),
        ("4", ["4"]),
        ("4,5", ["4", "5"]),
        (" 4 , 5 ", ["4", "5"]),
        ("1,-1,0", ["1"]),
    ],
)
def test_the_allotment(monkeypatch, kind, variable, value, expected):
    monkeypatch.delenv(variable, raising=False)
    if value is not None:
        monkeypatch.setenv(variable, value)
    assert allotted(kind) == expected
    assert chosen(kind, "auto") == chosen(kind, 2) == expected


def test_only_gpus_have_names(monkeypatch):
    monkeypatch.setenv(CUDA, "GPU-8c1f,MIG-7a")
    assert allotted("gpu") == chosen("gpu", 2) == ["GPU-8c1f", "MIG-7a"]


@pytest.mark.parametrize(("kind", "variable"), KINDS)
def test_a_device_that_is_named_twice_is_refused(monkeypatch, kind, variable):
    monkeypatch.setenv(variable, "1,0,1")
    with pytest.raises(UserError, match=f"{variable}=1,0,1: names a device twice"):
        chosen(kind, 1)


@given(st.lists(st.integers(0, 99), unique=True), st.lists(st.integers(0, 20), unique=True))
def test_a_list_takes_entries_of_the_allotment_or_is_refused(numbers, devices):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ASCEND, ",".join(map(str, numbers)))
        if all(device < len(numbers) for device in devices):
            assert chosen("npu", devices) == [str(numbers[device]) for device in devices]
        else:
            with pytest.raises(UserError, match=f"there is no NPU .* allots {len(numbers)}"):
                chosen("npu", devices)


def test_a_machine_that_cannot_count_its_chips_refuses_none(monkeypatch):
    monkeypatch.delenv(ASCEND, raising=False)
    monkeypatch.setattr(accelerators, "read_npus", lambda: [])
    assert chosen("npu", [3]) == ["3"]


def test_a_broken_chip_keeps_its_number(monkeypatch):
    monkeypatch.delenv(ASCEND, raising=False)
    chips = [Npu("Ascend310P3", n, 0, "Critical" if n == 1 else "OK") for n in range(4)]
    for module in (accelerators, npu_smi):
        monkeypatch.setattr(module, "read_npus", lambda: chips)
    assert chosen("npu", [3, 1]) == ["3", "1"]
    with pytest.raises(UserError, match="there is no NPU 4; this machine has 4, counted from 0"):
        chosen("npu", [4])


def test_ray_is_told_what_it_does_not_find(monkeypatch):
    monkeypatch.setattr(accelerators, "list_npus", lambda: ["chip"] * 2)
    assert resources("cpu", None) == {}
    assert resources("npu", None) == {"resources": {"NPU": 2}}
    assert resources("npu", ["5"]) == {"resources": {"NPU": 1}}
    assert resources("npu", []) == {"resources": {"NPU": 0}}
    assert resources("gpu", ["0", "1"]) == {}
    assert resources("gpu", ["MIG-a", "MIG-b"]) == {"num_gpus": 2}


@pytest.fixture
def given_by_ray(monkeypatch):
    """Sets what Ray gave the actor that this process plays; the environment is put back."""
    for variable in (CUDA, ASCEND):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)

    def give(**ids):
        context = SimpleNamespace(get_accelerator_ids=lambda: ids, get_node_id=lambda: "n")
        ray = SimpleNamespace(
            get_runtime_context=lambda: context,
            util=SimpleNamespace(get_node_ip_address=lambda: "10.0.0.7"),
        )
        monkeypatch.setitem(sys.modules, "ray", ray)

    return give


@pytest.mark.parametrize(("kind", "variable"), KINDS)
@pytest.mark.parametrize("seen", [None, "4,5", "5"])  # unmasked twice, and as Ray masks it
def test_an_actor_sees_its_own_accelerator_alone(monkeypatch, given_by_ray, kind, variable, seen):
    monkeypatch.delenv(variable, raising=False)
    if seen is not None:
        monkeypatch.setenv(variable, seen)
    given_by_ray(**{"NPU": ["5"], "GPU": ["5"]})
    place = settle(kind)
    assert os.environ[variable] == "5"
    assert (place.chip, place.address, place.node) == ("5", "10.0.0.7", "n")


def test_an_actor_without_accelerator_changes_nothing(monkeypatch, given_by_ray):
    monkeypatch.setenv(CUDA, "3,4")
    given_by_ray(GPU=["3"])
    assert settle("cpu").chip is None
    assert os.environ[CUDA] == "3,4"


@pytest.mark.parametrize("ids", [[], ["0", "1"]])
def test_an_actor_with_none_or_several_is_refused(given_by_ray, ids):
    given_by_ray(NPU=ids)
    with pytest.raises(UserError, match=f"a device {len(ids)} NPUs"):
        settle("npu")


@pytest.mark.parametrize("value", ["0-3", "0;1", "0,x", "\u00b2", "GPU-8c1f,MIG-7a"])
def test_what_is_no_npu_s_number_is_refused(monkeypatch, value):
    monkeypatch.setenv(ASCEND, value)
    with pytest.raises(UserError, match=rf"^{ASCEND}={value}: .* is no NPU's number; write each"):
        accelerators.allotted("npu")
