"""The doctor's lines: no wider than a terminal, and no word broken."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cfdist.doctor.table import Finding, can_run, looked_at, table
from cfdist.errors import UserError

WORDS = st.lists(st.text("abcdef-/=", min_size=1, max_size=50), min_size=1, max_size=30)


@settings(max_examples=25)
@given(WORDS, WORDS)
def test_every_word_is_whole_on_a_line_of_80_columns(found, remedy):
    shown = table([Finding("note", "what", " ".join(found), " ".join(remedy))])
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert shown.split() == ["note", "what", *found, "->", *remedy]


def test_a_refusal_is_what_is_found_and_its_remedy():
    def refuse() -> str:
        raise UserError("x: is not there; make it; or leave it")

    assert looked_at("x", refuse) == Finding(
        "FAULT", "x", "x: is not there", "make it; or leave it"
    )
    assert looked_at("x", lambda: "there") == Finding("ok", "x", "there")
    assert looked_at("x", lambda: str(1 // 0), "note").found == "integer division or modulo by zero"


def test_only_a_fault_keeps_a_run_from_starting():
    note, fault = Finding("note", "a", "b"), Finding("FAULT", "a", "b")
    assert can_run([note]) and can_run([]) and not can_run([note, fault])
