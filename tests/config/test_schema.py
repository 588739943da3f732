"""Every key has a meaning, and values of another kind or range are refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cfdist.config.schema import Config, all_fields, help_texts, sections
from cfdist.errors import UserError


def test_every_key_has_a_meaning():
    keys = all_fields()
    assert len(keys) > 60
    assert {"devices", "model.batch", "preprocess.where", "backend.fault"} <= keys.keys()
    for section, fields in sections():
        assert {key.rpartition(".")[2] for key in fields} <= help_texts(section).keys()


def test_the_checked_configuration_is_that_of_a_command(compose):
    config = compose("model.batch=16", "devices=[0,1]", "preprocess.where=cluster")
    assert (config.model.batch, config.devices) == (16, [0, 1])
    assert config.preprocess.where == "cluster"
    assert config.model.mean == [0.0, 0.0, 0.0]
    again = Config.model_validate(config.model_dump())
    assert again == config


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "batch", True),
        ("model", "scale", float("nan")),
        ("model", "mean", [0.0, float("inf"), 0.0]),
        ("dataset", "limit", 0),
        ("backend", "streams", "many"),
        ("preprocess", "where", "nowhere"),
    ],
)
def test_values_of_another_kind_or_range_are_refused(compose, section, key, value):
    values = compose().model_dump()
    values[section][key] = value
    with pytest.raises(ValidationError):
        Config.model_validate(values)


@pytest.mark.parametrize("key", ["export.output", "preprocess.output", "convert.output"])
def test_what_is_written_is_not_named_by_a_uri(compose, key):
    with pytest.raises(UserError, match=rf"^{key}=s3://b/x: must be a path on this machine; copy"):
        compose(f"{key}=s3://b/x")
    assert compose(f"{key}=s3:/b/x")
