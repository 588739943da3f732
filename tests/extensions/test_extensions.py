"""Code of other people is found by "module:name", or refused by one line."""

from __future__ import annotations

import pytest

from cfdist import backends, config
from cfdist.decode import CONVENTIONS
from cfdist.errors import UserError
from cfdist.execution import conventions
from cfdist.extensions import is_own_code, load_object


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("mine:Backend", True),
        ("a.b.c:d", True),
        ("openvino", False),
        ("mine:", False),
        (":Backend", False),
        ("mine:a.b", False),
        ("a b:c", False),
        ("/x/mine.py:Backend", False),
        ("a:b:c", False),
    ],
)
def test_the_form_of_a_name(name, is_own):
    assert is_own_code(name) == is_own


def test_what_a_name_gives():
    assert load_object("cfdist.decode:CONVENTIONS", "key") is CONVENTIONS


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("import nowhere_at_all", "there is no module nowhere_at_all; put the folder of nowhere"),
        ("", "module 'broken_module' has no attribute 'Thing'; name a class"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: division by zero); see that"),
        ("def f(:", "cannot be imported (SyntaxError: "),
    ],
)
def test_what_cannot_be_had_gives_one_line(tmp_path, monkeypatch, code, line):
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "broken_module", raising=False)
    with pytest.raises(UserError) as refused:
        load_object("broken_module:Thing", "backend.name")
    assert str(refused.value).startswith(f"backend.name=broken_module:Thing: {line}")
    assert "\n" not in str(refused.value)


def test_a_backend_has_to_be_one():
    with pytest.raises(UserError, match="json:JSONDecoder: is no class that is derived from"):
        backends.resolve("json:JSONDecoder")
    with pytest.raises(UserError, match=r"backend.name=nowhere:Thing: there is no module nowhere"):
        backends.resolve("nowhere:Thing")
    with pytest.raises(UserError, match=r"^candidate=nowhere:Thing: there is no module nowhere"):
        backends.resolve("nowhere:Thing", "candidate")
    name = "cfdist.backends.simulated:SimulatedBackend"
    assert backends.resolve(name) == name
    assert backends.backend_class(name).__name__ == "SimulatedBackend"
    with pytest.raises(UserError, match=r"or <module>:<class> of your own; did you mean openvino"):
        backends.resolve("opnvino")


def test_a_convention_has_to_be_there():
    model = config.compose("model.convention=nowhere:points").model
    with pytest.raises(UserError, match=r"model.convention=nowhere:points: there is no module"):
        conventions(model)
    with pytest.raises(UserError, match="must be centerface, centerface_pytorch or <module>:<name"):
        config.compose("model.convention=/x:points")
