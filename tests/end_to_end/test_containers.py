"""The images' files, and what their steps do, without a Docker daemon."""

from __future__ import annotations

import fnmatch
import itertools
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
IMAGES = ("Dockerfile", "Dockerfile.ascend")
# What the person puts there, see docs/installing.md.
BROUGHT = {"wheels"}


def instructions(name: str) -> list[tuple[str, str]]:
    """The instructions of a Dockerfile with their arguments, arguments of the build filled in."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "deploy" / name).read_text(), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").split("\n") if line.strip()]
    found = [tuple(line.split(None, 1)) for line in lines]
    given = dict(rest.split("=", 1) for word, rest in found if word == "ARG")
    return [(word, re.sub(r"\$\{(\w+)\}", lambda one: given[one[1]], rest)) for word, rest in found]


def is_left_out(path: str) -> bool:
    """Whether .dockerignore keeps a path out of the build."""
    rules = (PROJECT / ".dockerignore").read_text().split("\n")
    return any(
        fnmatch.fnmatch(path, rule.removeprefix("**/"))
        for rule in rules
        if rule[:1] not in ("#", "")
    )


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_pinned_small_and_not_root_s(name):
    linter = Path(sysconfig.get_path("scripts"), "hadolint")
    said = subprocess.run([linter, PROJECT / "deploy" / name], capture_output=True, text=True)
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")
    steps = instructions(name)
    words = [word for word, _ in steps]
    for word, rest in steps:
        if word == "COPY" and "--from=" not in rest:
            *sources, _ = rest.split()
            for source in set(sources) - BROUGHT:
                assert (PROJECT / source).exists(), source
                assert not is_left_out(source), source
    final = steps[len(words) - words[::-1].index("FROM") :]
    assert "PIP_NO_CACHE_DIR=1" in dict(final)["ENV"]
    (user,) = [place for place, (word, _) in enumerate(final) if word == "USER"]
    assert final[user][1].startswith("100")  # a number: Kubernetes sees that it is not root
    assert "RUN" not in [word for word, _ in final[user:]]
    assert "--require-hashes" in " ".join(rest for word, rest in final if word == "RUN")


def test_pictures_results_and_environments_stay_out_of_the_build():
    for path in (".git", ".venv", "outputs", "WIDER_val", "docs", "tests", ".ruff_cache"):
        assert is_left_out(path), path
    assert is_left_out("eval_tools.zip")


def test_the_steps_of_the_image_give_the_command(tmp_path):
    run = {"capture_output": True, "text": True, "timeout": 300}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    (tmp_path / "source").mkdir()
    copied = [rest.split()[:-1] for word, rest in instructions("Dockerfile") if word == "COPY"]
    for source in itertools.chain(*copied[:4]):  # those of the stage that makes the wheel
        subprocess.run(["cp", "-r", PROJECT / source, tmp_path / "source"], check=True)
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path / "wheels"]
    made = subprocess.run([*pip, "wheel", *options, "."], cwd=tmp_path / "source", **run)
    assert made.returncode == 0, made.stderr
    (wheel,) = (tmp_path / "wheels").glob("cfdist-*.whl")
    # An environment of its own that sees the packages of this one, as after requirements.txt.
    venv.create(tmp_path / "env", with_pip=False)
    packages = next((tmp_path / "env/lib").glob("python*")) / "site-packages"
    (packages / "others.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
    python = tmp_path / "env/bin/python"
    done = subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], **run)
    assert done.returncode == 0, done.stderr
    command = tmp_path / "env/bin/cfdist"
    version = subprocess.run([command, "--version"], cwd=tmp_path, **run)
    assert re.fullmatch(r"cfdist \d+\.\d+\.\d+\n", version.stdout), version.stderr
    shown = subprocess.run([command, "--cfg", "job", "experiment=quick"], cwd=tmp_path, **run)
    assert "limit: 32" in shown.stdout, shown.stderr
    script = subprocess.run([command, "-sc", "install=bash"], cwd=tmp_path, **run)
    assert "experiment=two_chips" in script.stdout
