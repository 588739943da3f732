"""Shells offer every job, group, key and choice, by a script that the program prints."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import subprocess
import time

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


LINES = [
    ("./run.sh job=ev", ["evaluate"]),
    ("cfdist model.ba", ["model.batch="]),
    ("run.sh experiment=", group_choices("experiment")),
    ("python main.py job=score eval=", ["guide", "official"]),
    ("python3 /x/main.py dataset.dam", ["dataset.damaged="]),
    ("python other.py model.ba", []),
    ("cfdist --mul", ["--multirun"]),
    ("cfdist dataset.root=no_such", []),
]


@pytest.mark.parametrize(("line", "expected"), [*LINES, ("cfdist dataset.root=", [])])
def test_what_bash_offers(line, expected):
    assert offered(line) == expected


def test_other_shells_read_their_script():
    for shell in ("zsh", "fish"):
        assert " ".join(words()[0]) in completion_script(shell)


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_what_fish_offers(tmp_path):
    (tmp_path / "WIDER.zip").touch()
    lines = [*LINES, ("run.sh dataset.root=WID", ["WIDER.zip"])]
    asked = "".join(f"echo @; complete -C '{line}'\n" for line, _ in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", completion_script("fish") + asked],
        capture_output=True, text=True, timeout=20, cwd=tmp_path,
    )  # fmt: skip
    assert done.stderr == ""
    found = [one.split() for one in done.stdout.split("@\n")[1:]]
    assert found == [with_key(*one) for one in lines]


def with_key(line: str, expected: list[str]) -> list[str]:
    """What a shell offers that takes a setting as one word."""
    key, mark, _ = line.split()[-1].partition("=")
    return [f"{key}={one}" if mark else one for one in expected]


# A widget that writes what the line has become.
ZSH = """
write() { print -rn -- $BUFFER > .new; mv .new .line; }
zle -N write
bindkey '^Xd' write
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("./run.sh job=ev", "job=evaluate "),
        ("python main.py model.ba", "model.batch="),
        ("cfdist dataset.root=", "dataset.root=WIDER.zip "),
        ("python other.py model.ba", "model.ba"),
    ],
)
def test_what_zsh_completes(line, completed, tmp_path):
    (tmp_path / "WIDER.zip").touch()
    (tmp_path / ".script").write_text(completion_script("zsh") + ZSH)
    process, screen = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ.update(TERM="dumb", HOME=str(tmp_path))
        os.execvp("zsh", ["zsh", "-f", "-i"])
    with open(screen, "r+b", buffering=0) as terminal:
        # A tab, and the keys of the widget; what is typed too early waits for the shell.
        terminal.write(f"source .script\n{line}\t\x18d".encode())
        deadline = time.monotonic() + 60
        while not (tmp_path / ".line").exists() and time.monotonic() < deadline:
            if select.select([terminal], [], [], 0.05)[0]:
                terminal.read(4096)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert (tmp_path / ".line").read_text() == f"{line.rpartition(' ')[0]} {completed}"


def test_another_shell_is_refused():
    with pytest.raises(UserError, match=r"install=bsh: must be install=bash or .*mean bash\?$"):
        completion_script("bsh")
