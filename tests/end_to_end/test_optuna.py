"""Hydra's sweepers get the figure that `objective` names."""

from __future__ import annotations

import importlib.util
import json

import pytest
import yaml

OPTUNA = (
    importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper")
    if (importlib.util.find_spec("hydra_plugins"))
    else None
)
FAST = ("backend=simulated", "backend.latency_ms=0", "dataset.limit=8", "cluster.dashboard=false")
SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1")
SEARCH += ("hydra.sweeper.direction=maximize", "model.batch=choice(1,2,4)", "output_dir=out")


def test_a_sweeper_that_is_not_there_is_named(command, tmp_path):
    search = ["hydra/sweeper=nevergrad" if one == SEARCH[1] else one for one in SEARCH]
    done = command(*search, *FAST, "objective=pictures_per_second")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "cfdist: hydra/sweeper=nevergrad: no such sweeper is installed; get it: "
        "`pip install hydra-nevergrad-sweeper`\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(OPTUNA is None, reason="hydra-optuna-sweeper is not installed")
def test_optuna_looks_for_the_best(command, tmp_path):
    refused = command(*SEARCH, *FAST)
    assert refused.returncode == 2
    assert refused.stderr.startswith("cfdist: objective: not given; this sweeper looks for")
    done = command(*SEARCH, *FAST, "objective=pictures_per_second")
    assert done.returncode == 0, done.stderr
    best = yaml.safe_load((tmp_path / "out" / "optimization_results.yaml").read_text())
    rates = {}
    for number in (0, 1):
        results = json.loads((tmp_path / "out" / str(number) / "results.json").read_text())
        rate = sum(one["pictures"] for one in results["devices"]) / results["seconds"]["run"]
        rates[results["batch"]] = max(rate, rates.get(results["batch"], 0))
    assert best["best_value"] == pytest.approx(max(rates.values()))
    assert best["best_params"] == {"model.batch": max(rates, key=rates.get)}
    assert (tmp_path / "out" / "sweep.md").is_file()
    # A run without a figure ends the search, in one line.
    failed = command(
        *SEARCH[:-1], *FAST, "objective=pictures_per_second", "output_dir=failed",
        "backend.fault=nan",
    )  # fmt: skip
    assert failed.returncode == 3
    assert "Traceback" not in failed.stderr
    assert "cfdist: the sweeper gave up: " in failed.stderr
