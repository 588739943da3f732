"""A dictionary of settings is what a command line would be, with nothing to quote."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cfdist import config
from cfdist.api import calls
from cfdist.api.calls import InputError, evaluate, score
from cfdist.command import cli, uploading
from cfdist.errors import StoppedError
from tests.api.test_types import RESULTS

_PARSER = OverridesParser.create()

# What no command line can hold is no file's name either.
TEXTS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1, max_size=20
)


def value_of(key: str, value: object) -> object:
    """The value that the configuration gets for a key."""
    written = calls._arguments("score", {key: value})[1]
    parsed = _PARSER.parse_override(written)
    assert parsed.key_or_group == key
    return OmegaConf.create({"value": parsed.value()}).value


@pytest.mark.slow
@settings(max_examples=60)
@given(TEXTS)
def test_a_text_is_taken_as_it_is(text):
    assert value_of("backend.provider_options", {"a": text, "b": 1}) == {"a": text, "b": 1}
    assert value_of("predictions", text) == text
    assert value_of("backend.providers", [text, "b"]) == [text, "b"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (4, 4),
        (np.int64(4), 4),
        (0.25, 0.25),
        (np.float32(0.25), 0.25),
        (1e-7, 1e-7),
        (True, True),
        (None, None),
        ([0, 1], [0, 1]),
        ((0.5, None), [0.5, None]),
        ("null", "null"),
        ("1,2", "1,2"),
    ],
)
def test_values_keep_their_kinds(value, expected):
    found = value_of("devices", value)
    assert found == expected
    assert isinstance(expected, list) or type(found) is type(expected)


def test_paths_are_texts():
    assert value_of("predictions", Path("a b/'c'")) == "a b/'c'"
    assert value_of("predictions", "null") == "null"
    assert value_of("predictions", None) is None


@pytest.mark.parametrize(
    ("given_settings", "line"),
    [
        ({"model.batch": 4 + 0j}, r"model\.batch=\(4\+0j\): a value is a text, a path, a number"),
        ({"model": {"batch": 4}}, r"model=\{'batch': 4\}: a value is a text"),
        ({"model.bath": 4}, r"model\.bath: no such key; did you mean model\.batch\?"),
        ({"model.batch": "1,4"}, r"model\.batch=1,4: must be a whole number"),
        ({"model.batch": True}, r"model\.batch=true: must be a whole number"),
        ({"model.batch": float("nan")}, r"model\.batch=nan: must be a whole number"),
        ({"dataset": "wider"}, "dataset=wider: no such choice; there are"),
        ({"experiment": "published_table"}, "published_table: a sweep, which only a command makes"),
        ({"hydra.mode": "MULTIRUN"}, "a sweep, which only a command makes"),
        ({"hydra.job.name": "x"}, "cfdist sets this itself"),
        ({"job": "score"}, "job: given twice"),
        ({"quiet": True}, r"quiet=True: the command reads it.*show=True prints"),
        ({"progress": "json"}, r"progress=json: the command reads it"),
        ({"verbose": False}, r"verbose=False: the command reads it"),
        ({"predictions": "p"}, "predictions: job=evaluate does not read it"),
        ({"-m": True}, "no such option"),
        ({3: 4}, "3=4: |3: no such key"),
    ],
)
def test_bad_settings_are_one_line(given_settings, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=line) as refused:
        evaluate(given_settings)
    assert "\n" not in str(refused.value)
    assert refused.value.__cause__ is None
    assert list(tmp_path.iterdir()) == []


def test_a_default_folder_is_a_new_one(tmp_path):
    first = calls._folder(str(tmp_path / "run"), is_given=False)
    assert first == tmp_path / "run"
    first.mkdir()
    assert calls._folder(str(first), is_given=False) == tmp_path / "run_2"
    (tmp_path / "run_2").mkdir()
    assert calls._folder(str(first), is_given=False) == tmp_path / "run_3"
    assert calls._folder(str(first), is_given=True) == first


@pytest.mark.parametrize(("nodes", "joined"), [(1, False), (2, True)])
def test_the_callers_cluster_is_the_runs(monkeypatch, nodes, joined):
    import ray

    address = "10.0.0.1:6379"
    monkeypatch.setattr(calls, "caller_has_ray", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=address))
    monkeypatch.setattr(calls, "cluster_nodes", lambda kind: ["node"] * nodes)
    expected = [f"cluster.address='{address}'"] if joined else []
    for asked in ({}, {"cluster.address": "auto"}, {"cluster.address": address}):
        assert calls._arguments("evaluate", asked)[1:] == expected
    with pytest.raises(InputError, match=r"cluster\.address=local: .*is connected to 10\.0\.0\.1"):
        calls._arguments("evaluate", {"cluster.address": "local"})


def test_a_repeated_call_sends_what_could_not_be_sent(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there, runs = tmp_path / "there", []

    def main(config, output, started):
        runs.append(output)
        (output / "results.json").write_text(json.dumps(RESULTS))
        return 3

    def cut(*_):
        raise OSError(errno.ECONNRESET, "connection reset")

    monkeypatch.setattr(cli, "load_job", lambda name: SimpleNamespace(main=main))
    call = {"predictions": "p", "output_dir": f"file://{there}"}
    with monkeypatch.context() as broken:
        broken.setattr(uploading, "_upload", cut)
        with pytest.raises(StoppedError, match=r"connection reset.*until the same command"):
            score(call)
    assert not (there / "results.json").exists()
    run = score(call)
    assert (run.output_dir, run.exit_code, run.ap["official"].hard) == (call["output_dir"], 3, 0.7)
    assert json.loads((there / "results.json").read_text()) == RESULTS
    assert len(runs) == 1
    assert not runs[0].exists()


def test_a_reference_in_a_text_stays_one():
    text = "a${b}\\${c}"
    texts = {
        "input": text,
        "backend.providers": [text, "x"],
        "infer.cli_args": [f"--a={text}"],
    }
    composed = config.compose_prepared(*calls._arguments("detect", texts))
    values = OmegaConf.to_container(composed, resolve=True)
    assert values["input"] == text
    assert values["backend"]["providers"] == [text, "x"]
    assert values["infer"]["cli_args"] == [f"--a={text}"]
