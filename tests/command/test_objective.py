"""The one figure that a sweeper gets, or none."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from cfdist.command.objective import objective_of, refuse_aimless
from cfdist.errors import UserError


def results(objective, **changes):
    values = {
        "ap": {"guide": {"easy": 0.9, "medium": 0.8, "hard": 0.7}, "official": {"hard": 0.6}},
        "expected": None,
        "failures": [],
        "pictures": {"total": 8, "done": 8, "failed": 0},
        "devices": [{"pictures": 5}, {"pictures": 3}],
        "seconds": {"run": 4.0},
        "config": {"objective": objective, "eval": {"gate": True}},
    }
    return values | changes


MISSED = {"met": False}
FAILED = [{"picture": "a", "reason": "empty"}]


@pytest.mark.parametrize(
    ("objective", "changes", "figure"),
    [
        ("hard", {}, 0.7),  # by the chosen protocol, which comes first
        ("easy", {}, 0.9),
        ("pictures_per_second", {}, 2.0),
        (None, {}, None),
        ("hard", {"expected": MISSED}, 0.7),
        ("pictures_per_second", {"expected": MISSED}, 0.0),
        ("hard", {"failures": FAILED}, None),
        ("pictures_per_second", {"failures": FAILED}, None),
        ("hard", {"ap": {}}, None),
        ("pictures_per_second", {"devices": []}, None),
    ],
)
def test_the_figure_of_a_run(objective, changes, figure):
    assert objective_of(results(objective, **changes)) == figure


def test_a_sweeper_with_an_aim_has_one():
    basic = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
    for target, objective in ((basic, None), ("x.OptunaSweeper", "hard"), (None, None)):
        sweeper = {"sweeper": {"_target_": target} if target else {}}
        refuse_aimless(OmegaConf.create({"hydra": sweeper, "objective": objective}))
    config = {"hydra": {"sweeper": {"_target_": "x.OptunaSweeper"}}, "objective": None}
    with pytest.raises(UserError, match=r"^objective: not given; .* objective=hard, medium, easy"):
        refuse_aimless(OmegaConf.create(config))
