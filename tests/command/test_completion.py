"""Shells offer every job, group, key and choice, by a script that the program prints."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cfdist.command.completion import completion_script, words
from cfdist.config.installation import group_choices, groups
from cfdist.config.schema import all_fields
from cfdist.config.uses import JOBS
from cfdist.errors import UserError


def offered(line: str) -> list[str]:
    """What bash offers for the last word of a command line."""
    script = f"""
{completion_script("bash")}
COMP_LINE={line!r} COMP_POINT={len(line)}
read -ra COMP_WORDS <<< {line!r}
kind=$(complete -p "${{COMP_WORDS[0]}}"); kind=${{kind##*-F }}
${{kind%% *}}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    command = ["bash", "--norc", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.stderr == ""
    return done.stdout.split()


def test_every_key_group_job_and_choice_is_offered():
    keys, settings = words()
    assert {f"{key}=" for key in (*all_fields(), *groups())} <= set(keys)
    assert {f"job={job}" for job in JOBS} <= set(settings)
    for group in groups():
        assert {f"{group}={choice}" for choice in group_choices(group)} <= set(settings)
    assert {"eval.gate=true", "benchmark.parts=[host]", "backend.preset=310P3"} <= set(settings)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("./run.sh job=ev", ["evaluate"]),
        ("cfdist model.ba", ["model.batch="]),
        ("run.sh experiment=", group_choices("experiment")),
        ("python main.py job=score eval=", ["guide", "official"]),
        ("python3 /x/main.py dataset.dam", ["dataset.damaged="]),
        ("python other.py model.ba", []),
        ("cfdist --mul", ["--multirun"]),
        ("cfdist dataset.root=WIDER", []),
    ],
)
def test_what_bash_offers(line, expected):
    assert offered(line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_script(shell):
    script = completion_script(shell)
    assert " ".join(words()[0]) in script
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_shell_is_refused():
    with pytest.raises(UserError, match=r"install=bsh: must be install=bash or .*mean bash\?$"):
        completion_script("bsh")
