"""Every key, with every kind of value that does not fit, in every job: one line with the remedy.

The wrong values are made from the schema, so that a new key is tried as well.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pydantic.fields import FieldInfo

from cfdist import config
from cfdist.command.arguments import OPTIONS
from cfdist.config.composing import validated
from cfdist.config.installation import group_choices, groups
from cfdist.config.messages import allowed, choices, no_such_key
from cfdist.config.schema import PATH, all_fields
from cfdist.config.unused import conditions
from cfdist.config.uses import JOBS
from cfdist.errors import UserError
from tests.conftest import refusal


def members(field: FieldInfo) -> Iterator[FieldInfo]:
    """The kinds of value that a field unites."""
    if get_origin(field.annotation) in (Union, UnionType):
        for one in get_args(field.annotation):
            yield from members(FieldInfo.from_annotation(one))
    else:
        yield field


def misspelt(word: str) -> str:
    """A word with its middle letter left out, or with one more."""
    middle = len(word) // 2
    return word[:middle] + word[middle + 1 :] if len(word) > 3 else word + word[-1]


def out_of_range(field: FieldInfo) -> Iterator[str]:
    """Numbers just past a field's limits, and those that are none."""
    limits = {name: getattr(rule, name) for rule in field.metadata for name in ("ge", "le") if
              getattr(rule, name, None) is not None}  # fmt: skip
    if "ge" in limits:
        yield str(limits["ge"] - 1)
    if "le" in limits:
        yield str(limits["le"] + 1)
    yield from ("nan", "inf", "-inf", "1e999", "x", "4 5", "true")
    if field.annotation is int:
        yield from ("1.5", "2.0", "99.")


def wrong_values(field: FieldInfo) -> set[str]:
    """Values, as typed, that a key may not have."""
    kinds = list(members(field))
    types = {get_origin(one.annotation) or one.annotation for one in kinds}
    wrong = {"{a: 1}"} | ({"null"} if types.isdisjoint({NoneType}) else set())
    if list not in types:
        wrong.add("[[1]]")
    if dict in types:
        wrong = {"{a: [1]}", "{a: null}", "5", "a"}
    for one in kinds:
        kind, origin = one.annotation, get_origin(one.annotation)
        if origin is Literal:
            wrong |= {misspelt(word) for word in choices(one)}
        elif kind in (int, float):
            wrong |= set(out_of_range(one))
        elif kind is bool:
            wrong |= {"maybe", "2", "ture"}
        elif origin is list:
            element = FieldInfo.from_annotation(get_args(kind)[0])
            wrong |= {f"[{value}]" for value in wrong_values(element) - {"{a: 1}", "null"}}
            wrong |= {"[null]", "[{a: 1}]"}
    if str in types:  # any other text may be meant
        wrong = {value for value in wrong if value in ("null", "{a: 1}", "[[1]]")}
        wrong |= {"''"} if PATH in allowed(field) else set()
    if "null" in choices(field):
        wrong.discard("null")
    return wrong


TABLE = [(key, value) for key, field in all_fields().items() for value in wrong_values(field)]


PARSER = OverridesParser.create()


@contextlib.contextmanager
def typed(values: dict[str, Any], key: str, value: str) -> Iterator[dict[str, Any]]:
    """The composed values with one that was typed."""
    *sections, name = key.split(".")
    section = values
    for inner in sections:
        section = section[inner]
    before = section[name]
    section[name] = PARSER.parse_override(f"{key}={value}").value()
    try:
        yield values
    finally:
        section[name] = before


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    """What Hydra composes, plain values."""
    return OmegaConf.to_container(config.compose_values(), resolve=True)


def test_every_key_of_every_job_refuses_what_does_not_fit(composed):
    assert len(TABLE) > 500
    turns = {key: itertools.cycle([job for job in JOBS if conditions(key, job) is not None])
             for key in all_fields()}  # fmt: skip
    tried = set()
    for key, value in TABLE:
        job = next(turns[key])
        tried.add(job)
        composed["job"] = job
        with pytest.raises(UserError) as refused, typed(composed, key, value) as values:
            validated(values)
        line = str(refused.value)
        field = all_fields()[key]
        assert "\n" not in line
        assert line.startswith((f"{key}=", f"{key}: must not be empty")), (line, value)
        if "must not be empty" not in line:
            assert f"must be {allowed(field)}" in line
    assert tried == set(JOBS)


def test_every_misspelt_choice_is_told_the_one_that_is_meant(composed):
    tried = 0
    for key, field in all_fields().items():
        words = [word for word in choices(field) if word not in ("true", "false", "null")]
        for word in words:
            wrong = misspelt(word)
            if wrong in words or allowed(field).startswith("text"):
                continue
            value = f"[{wrong}]" if get_origin(field.annotation) is list else wrong
            with pytest.raises(UserError) as refused, typed(composed, key, value) as values:
                validated(values)
            # "inf" and "inf_scores" are both near to "in_scores".
            assert f"; did you mean {word}?" in str(refused.value), (key, wrong)
            tried += 1
    assert tried > 40


def test_every_misspelt_choice_of_a_group_is_told_the_one_that_is_meant():
    for group in groups():
        assert group_choices(group)
        for choice in group_choices(group):
            line = refusal(f"{group}={misspelt(choice)}")
            assert line.startswith(f"{group}={misspelt(choice)}: no such choice; there are ")
            assert line.endswith(f"; did you mean {choice}?")


def test_every_misspelt_key_is_told_the_one_that_is_meant():
    for key in [*all_fields(), *groups()]:
        wrong = misspelt(key)
        if wrong not in groups():
            assert no_such_key(wrong) == f"{wrong}: no such key; did you mean {key}?"
    # A key without its section, or in another one.
    assert no_such_key("batch").endswith("did you mean model.batch?")
    told = no_such_key("dataset.batch")
    assert told.startswith("dataset.batch: no such key; dataset has name, ")
    assert told.endswith("; did you mean model.batch?")
    assert refusal("model.outputs={a: 1}").startswith("model.outputs={a: 1}: must be null or a")
    assert refusal("dataest=sample") == "dataest: no such key; did you mean dataset?"


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("--hlep", "--help"),
        ("--multrun", "--multirun"),
        ("--devices", "devices=..."),
        ("--model-batch", "model.batch=..."),
        ("score", "job=score"),
        ("benchmrk", "job=benchmark"),
        ("openvino", "backend=openvino"),
        ("published_table", "experiment=published_table"),
    ],
)
def test_an_argument_that_is_no_setting_is_told_what_may_be_meant(argument, meant):
    line = refusal(argument)
    assert line.startswith(f"{argument}: no")
    assert line.endswith(f"did you mean {meant}?")


def test_every_option_is_told_when_it_is_misspelt():
    for option in OPTIONS:
        if option.startswith("--"):
            assert refusal(misspelt(option)).endswith(f"; did you mean {option}?")
