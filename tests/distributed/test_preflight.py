"""What is asked of each node before a run, and what follows from the answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ray

from cfdist.backends.model import BackendModel
from cfdist.distributed import preflight
from cfdist.distributed.nodes import Node, all_but
from cfdist.distributed.plan import plan_devices
from cfdist.distributed.preflight import Wanted, check_nodes, inspect_node, versions
from cfdist.errors import UserError
from cfdist.report import screen
from cfdist.widerface.manifest import WorkItem


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    return WorkItem("e/a", str(tmp_path / "a.jpg"), 5)


@pytest.fixture
def model(spec):
    return BackendModel("openvino", spec(), {})


def test_a_node_that_has_everything_has_no_fault(picture, model):
    answer = inspect_node(Wanted((model,), (picture,), "cpu"), 0)
    assert answer.faults == ()
    assert answer.versions == versions()
    assert min(answer.memory, answer.disk) > 0


def test_a_node_names_what_it_lacks(picture, model, monkeypatch):
    other = replace(model, spec=replace(model.spec, sha256="1" * 64))
    missing = replace(picture, path=picture.path + "x")
    larger = replace(picture, size=6)
    monkeypatch.setattr(preflight, "count_accelerators", lambda kind: 1)
    faults = inspect_node(Wanted((other,), (missing,), "npu"), 2.0).faults
    assert faults[0].startswith(f"cannot read {missing.path} (")
    assert "is another one on host" in faults[1]
    assert faults[2] == "has 1 NPU, and was started with 2"
    (fault,) = inspect_node(Wanted((model,), (picture, larger), "cpu"), 0).faults
    assert fault == f"has another {picture.path} (5 bytes; 6 where the command runs)"


def test_other_versions_are_a_fault(monkeypatch):
    answer = preflight.NodeAnswer(("2.9.0", *versions()[1:]), 1, 1)
    monkeypatch.setattr(ray, "get", lambda ref: answer)
    check = preflight._checked(Node("b", 1.0), object())
    assert check.faults == (f"has Ray 2.9.0, this command {ray.__version__}",)
    assert preflight._checked(Node("b", 1.0), None).faults == ("has not answered within 60 s",)


def test_nodes_that_are_left_out_are_named_with_their_first_fault():
    nodes = [preflight.NodeCheck(Node(str(i), 1.0), None, ("a", "b")) for i in range(5)]
    well = preflight.NodeCheck(Node("x", 1.0), None, ())
    assert preflight.left_out([well]) == ""
    assert preflight.left_out([well, *nodes[:2]]) == "0: a; 1: a"
    assert preflight.left_out(nodes) == "0: a; 1: a; 2: a; and 2 more"
    for checks, told in (([well], "no CPU"), (nodes[:1], r"no CPU \(left out: 0: a\)")):
        with pytest.raises(UserError, match=f"^{told}$"), preflight.naming_left_out(checks):
            raise UserError("no CPU")


def test_devices_keep_off_the_nodes_that_are_left_out():
    plan = plan_devices("cpu", 1, nodes=[Node("a", 2.0)])
    assert "label_selector" not in plan.actor_options
    kept = replace(plan, without=("1f", "2e")).actor_options["label_selector"]
    assert kept == all_but(("1f", "2e")) == {"ray.io/node-id": "!in(1f,2e)"}


def test_the_screen_says_one_line_or_names_each_node(capsys):
    answer = preflight.NodeAnswer(("2.60.0", "3.11.7", "0.1 (ab)"), 2 * 10**9, 3 * 10**9)
    well = [preflight.NodeCheck(Node(host, 1.0), answer, ()) for host in ("b", "a")]
    screen.print_nodes(well)
    assert capsys.readouterr().out == "2 nodes (a, b): same versions, model and pictures\n"
    screen.print_nodes(well[:1])
    assert capsys.readouterr().out == ""
    screen.print_nodes([*well, preflight.NodeCheck(Node("c", 1.0), None, ("cannot [x]",))])
    shown = capsys.readouterr().out
    assert "cannot [x]" in shown
    assert "2.0 GB" in shown


def test_every_node_is_asked(ray_session, picture, model, monkeypatch):
    (check,) = check_nodes([model], [picture], "cpu")
    assert check.faults == ()
    assert check.answer.versions == versions()
    # A picture that is not readable here either is no node's fault.
    missing = replace(picture, path=picture.path + "x")
    (check,) = check_nodes([model], [missing], "cpu")
    assert check.faults == ()
    monkeypatch.setattr(preflight, "_refusal", lambda item: None)  # here, not on the node
    with pytest.raises(UserError, match=r"no node of the cluster can have .*: cannot read"):
        check_nodes([model], [missing], "cpu")
