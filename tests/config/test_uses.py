"""The conditions under which a job reads a key."""

from __future__ import annotations

import pytest

from cfdist.config import group_choices, uses
from cfdist.config.schema import all_uses
from cfdist.config.uses import JOBS, Situation, Use, Uses


def holds(condition: uses.When, backends: tuple[str, ...] = ("openvino",), **values) -> bool:
    named = {key.replace("__", "."): value for key, value in values.items()}
    return condition.holds(Situation(named, frozenset(backends)))


def test_every_key_is_read_by_a_job_and_every_job_is_one():
    for key, found in all_uses().items():
        assert found, key
        assert {job for use in found for job in use.jobs} <= set(JOBS)


def test_the_backends_are_those_of_the_configuration():
    assert {*uses.BACKENDS, "auto"} == set(group_choices("backend"))


def test_conditions_hold_by_value():
    assert holds(uses.given("a.b", "FILE"), a__b="x")
    assert not holds(uses.given("a.b", "FILE"), a__b=None)
    assert holds(uses.missing("a.b"), a__b=None)
    assert holds(uses.equal("a", 2, "2"), a=2)
    parts = uses.parts("host", "end_to_end")
    assert holds(parts, benchmark__parts=["inference", "host"])
    assert not holds(parts, benchmark__parts=["inference"])


def test_conditions_hold_by_backend():
    assert holds(uses.on("openvino"), ("openvino", "om"))
    assert not holds(uses.on("openvino"), ("torch",))
    assert holds(uses.on("openvino"), ("somebody_s",))  # it may read what it likes
    assert not holds(uses.REAL, ("simulated",))
    assert holds(uses.REAL, ("simulated", "om"))


@pytest.mark.parametrize(
    ("condition", "backends", "files", "expected"),
    [
        (uses.WITHOUT_CHECKPOINT, ("torch",), {"checkpoint": "a.pth"}, False),
        (uses.WITHOUT_CHECKPOINT, ("torch",), {}, True),
        (uses.WITHOUT_CHECKPOINT, ("openvino",), {"checkpoint": "a.pth"}, True),
        (uses.HAS_OUTPUT_NAMES, ("torch",), {"checkpoint": "a.pth"}, False),
        (uses.HAS_OUTPUT_NAMES, ("torch",), {"path": "a.ONNX"}, True),
        (uses.HAS_OUTPUT_NAMES, ("om",), {"path": "a.om"}, True),
        (uses.BATCH_IN_NAME, ("torch",), {"path": "a_{batch}.onnx"}, True),
        (uses.BATCH_IN_NAME, ("torch",), {"path": "a.onnx"}, False),
    ],
)
def test_conditions_hold_by_file(condition, backends, files, expected):
    names = {"model.checkpoint": None, "model.path": None, "model.weights.path": None}
    values = names | {f"model.{name}": value for name, value in files.items()}
    assert condition.holds(Situation(values, frozenset(backends))) is expected


def test_uses_add_up():
    both = uses.only("score") + uses.only("export", when=(uses.REAL,))
    assert isinstance(both, Uses)
    assert both == (Use(("score",)), Use(("export",), (uses.REAL,)))
    assert uses.also(both, uses.WIDER)[1] == Use(("export",), (uses.REAL, uses.WIDER))


def test_a_comparison_by_layers_reads_what_it_needs():
    found = uses.without_layers(uses.only("score", "compare", when=(uses.REAL,)), "devices")
    assert found == (Use(("score",), (uses.REAL,)), Use(("compare",), (uses.REAL, uses.NOT_LAYERS)))
    assert uses.without_layers(uses.DATA_SET, "dataset.root") is uses.DATA_SET
