"""What a command line's values become."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from cfdist import config
from cfdist.config.schema import Job, all_fields
from cfdist.errors import UserError


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("devices=2", 2),
        ("devices=[0,1]", [0, 1]),
        ("devices=auto", "auto"),
        ("benchmark.readers=[2,1]", [2, 1]),
        ("model.batch='4'", 4),
        ("model.batch=${oc.env:CFDIST_TEST_BATCH}", 16),
        ("pipeline.readers=${oc.env:CFDIST_TEST_BATCH}", 16),
        ("model.scale=2", 2.0),
        ("model.nms=1e-1", 0.1),
        ("model.nms=null", None),
        ("model.mean=[1,2,3]", [1.0, 2.0, 3.0]),
        ("model.outputs=[537,538,539,540]", ["537", "538", "539", "540"]),
        ("model.name=3", "3"),
        ("cluster.address=1", "1"),
        ("eval.gate=yes", True),
        ("eval.gate=1", True),
        ("preprocess.cache=true", True),
        ("preprocess.cache=auto", "auto"),
        ("preprocess.where=cluster", "cluster"),
        ("backend.fault=nan", "nan"),
        ("backend.fault=inf", "inf"),
        ("backend.fault=inf_scores", "inf_scores"),
        ("backend.fault_device=0", 0),
        ("convert.log=null", "null"),
    ],
)
def test_values_get_their_key_s_type(override, value, monkeypatch):
    monkeypatch.setenv("CFDIST_TEST_BATCH", "16")
    found = config.compose(override)
    for name in override.partition("=")[0].split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model=centerface_pytorch", "model.batch=4", "model.expected={easy: 0.5}"),
        ("experiment=published_table", "dataset.limit=3", "backend='openvino'", "++model.nms=null"),
    ],
)
def test_what_the_tests_compose_is_what_hydra_composes(overrides):
    """The tests' `files_read_once` changes nothing."""
    shared = config.compose_values(*overrides)
    with initialize_config_dir(str(config.CONFIG_FOLDER), version_base="1.3"):
        # What has one of Hydra's own settings is composed as it stands.
        alone = hydra_compose("config", [*overrides, "hydra.verbose=false"])
    assert OmegaConf.to_yaml(shared) == OmegaConf.to_yaml(alone)
    assert OmegaConf.is_struct(shared) is OmegaConf.is_struct(alone) is True


def test_a_group_chooses_what_its_file_says_and_leaves_the_rest():
    composed = config.compose("model=centerface_pytorch", "model.expected={easy: 0.5}")
    assert composed.model.convention == "centerface_pytorch"
    assert composed.model.expected.easy == 0.5
    assert composed.model.expected.hard == 0.7455
    assert composed.model.batch == 1


def test_the_whole_configuration_is_plain_values():
    dumped = config.compose("devices=[0,1]", "preprocess.cache=true").model_dump()
    assert json.loads(json.dumps(dumped)) == dumped
    for key in all_fields():
        section = dumped
        for name in key.split("."):
            section = section[name]


def test_every_job_has_its_module():
    from cfdist.config.installation import load_job

    for job in get_args(Job):
        assert callable(load_job(job).main)


def test_a_group_on_the_command_line_wins_over_the_experiment_s(compose):
    assert compose("experiment=published_table").eval.protocol == "guide"
    assert compose("experiment=published_table", "eval=official").eval.protocol == "official"


@pytest.mark.parametrize("job", ["benchmark", "preprocess", "infer", "export"])
def test_a_preset_at_own_size_is_refused_by_jobs_that_letterbox(job):
    with pytest.raises(UserError, match=f"preprocess.size=own: job={job} takes letterboxed pict"):
        config.compose(f"job={job}", "experiment=authors_own_size")
