"""`run.sh` and the requirements: what a person's own settings may do to the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def in_run_sh(script: str, venv: Path | str, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of bash with the functions of `run.sh` and another .venv."""
    return subprocess.run(
        ["bash", "-c", f"source ./run.sh; venv={venv}; {script}"],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def pip_conf(tmp_path):
    path = tmp_path / "pip.conf"
    path.write_text(
        "[global]\nindex-url = https://mirror.example/simple\nconstraint = /none/c.txt\n"
        "[install]\nuser = true\nfind-links =\n    /wheels/one\n    /wheels/two\n"
    )
    return str(path)


def test_pip_keeps_sources_and_drops_what_changes_the_contents(pip_conf, tmp_path):
    settings = {
        "PIP_CONFIG_FILE": pip_conf,
        "PIP_CONSTRAINT": "/none/constraints.txt",
        "PIP_REQUIRE_HASHES": "1",
        "PIP_USER": "1",
        "PIP_TARGET": str(tmp_path),
        "PIP_PROXY": "http://proxy.example:3128",
        "PIP_CERT": "/etc/own.pem",
        "PIP_NO_INDEX": "1",
        "PYTHONPATH": str(tmp_path),
    }
    seen = in_run_sh("run_pip config list", sys.prefix, **settings)
    assert seen.stderr == ""
    kept = dict(line.split("=", 1) for line in seen.stdout.splitlines())
    wanted = {
        ":env:.cert": "'/etc/own.pem'",
        ":env:.find-links": r"'\n/wheels/one\n/wheels/two'",
        ":env:.index-url": "'https://mirror.example/simple'",
        ":env:.no-index": "'1'",
        ":env:.proxy": "'http://proxy.example:3128'",
    }
    assert wanted.items() <= kept.items()
    dropped = {f":env:.{name}" for name in ("constraint", "require-hashes", "user", "target")}
    assert kept.keys().isdisjoint(dropped | {"install.user"})


def test_the_environment_overrides_pips_files(pip_conf):
    seen = in_run_sh(
        "run_pip config list", sys.prefix, PIP_CONFIG_FILE=pip_conf, PIP_FIND_LINKS="/own"
    )
    assert ":env:.find-links='/own'" in seen.stdout.splitlines()


def wheel(folder: Path, name: str, module: str = "", content: str = "") -> None:
    """A wheel that holds one module, by default an empty one of its own name."""
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as file:
        file.writestr(f"{module or name}.py", content)
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        names = [f"{module or name}.py", *(f"{info}/{one}" for one in ("METADATA", "WHEEL"))]
        file.writestr(f"{info}/RECORD", "".join(f"{one},,\n" for one in (*names, f"{info}/RECORD")))


def test_the_environment_is_made_from_a_folder_of_wheels_without_a_network(tmp_path):
    (tmp_path / "wheels").mkdir()
    wheel(tmp_path / "wheels", "carried")
    (tmp_path / "run.sh").write_bytes((PROJECT / "run.sh").read_bytes())
    (tmp_path / "requirements.txt").write_text("carried==1.0\n")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHON": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
        "PIP_CONSTRAINT": "/none/constraints.txt",
        "PIP_USER": "1",
    }
    for _ in range(2):  # the second call finds it installed
        done = subprocess.run(
            ["bash", "-c", "source ./run.sh; install_environment requirements.txt"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        shutil.rmtree(tmp_path / "wheels", ignore_errors=True)
    imported = subprocess.run([tmp_path / ".venv/bin/python", "-I", "-c", "import carried"])
    assert imported.returncode == 0


def test_a_gpu_s_runtime_takes_the_place_of_the_cpu_s_and_stays(tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel(wheels, "onnxruntime", content="KIND = 'cpu'")
    wheel(wheels, "onnxruntime_gpu", "onnxruntime", "KIND = 'gpu'")
    wheel(wheels, "torch")
    (tmp_path / "run.sh").write_bytes((PROJECT / "run.sh").read_bytes())
    (tmp_path / "requirements-gpu.txt").write_text("onnxruntime-gpu==1.0\ntorch==1.0\n")
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}

    def kind(requirements: str, **more: str) -> str:
        (tmp_path / "requirements.txt").write_text(requirements)
        script = "source ./run.sh; install_environment requirements.txt >&2; "
        script += '"$venv/bin/python" -I -c "import onnxruntime; print(onnxruntime.KIND)"; '
        script += "ls $venv/lib/python3*/site-packages | grep -c '^onnxruntime.*dist-info$'"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=tmp_path,
            env=environment | more,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert kind("onnxruntime==1.0\n") == "cpu\n1\n"
    assert kind("onnxruntime==1.0\n", CFDIST_GPU="1") == "gpu\n1\n"
    assert kind("onnxruntime==1.0\n# of a later version\n") == "gpu\n1\n"


@pytest.mark.parametrize("python", PYTHONS[1:])
def test_the_gpu_s_packages_have_wheels_and_agree_with_the_others(python, tmp_path):
    others = [
        line
        for line in (PROJECT / "requirements.txt").read_text().splitlines()
        if not line.startswith("onnxruntime==")
    ]
    (tmp_path / "others.txt").write_text("\n".join(others))
    command = ["-m", "uv", "pip", "install", "--dry-run", "--target", str(tmp_path / "there")]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--python-version", python]
    command += ["--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime"]
    done = subprocess.run(
        [sys.executable, *command, "-r", "requirements-gpu.txt", "-r", tmp_path / "others.txt"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    there = [line.split()[-1] for line in done.stderr.splitlines() if line.startswith(" + ")]
    assert any(one.startswith("onnxruntime-gpu==") for one in there)
    assert not any(one.startswith("onnxruntime==") for one in there)


def test_own_packages_come_before_those_of_the_callers_pythonpath(tmp_path):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    (tmp_path / "toolkit_module.py").write_text("")
    script = 'own_packages_first; "$venv/bin/python" -c "import numpy, toolkit_module"'
    script += '; echo "$CFDIST_PYTHONPATH"'
    done = in_run_sh(script, sys.prefix, PYTHONPATH=str(tmp_path))
    assert (done.stderr, done.stdout) == ("", f"{tmp_path}\n")


def test_a_python_without_the_packages_gets_one_line():
    done = subprocess.run(
        [sys.executable, "-S", "main.py", "--help"], cwd=PROJECT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "./run.sh" in done.stderr


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", ["aarch64-manylinux_2_28", "x86_64-manylinux_2_28"])
def test_every_package_has_a_wheel_for_older_hosts(platform, python, tmp_path):
    command = ["-m", "uv", "pip", "install", "--dry-run", "--target", str(tmp_path)]
    command += ["--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--no-binary", "antlr4-python3-runtime"]
    done = subprocess.run(
        [sys.executable, *command, "-r", "requirements.txt"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert ("openvino==" in done.stderr) == platform.startswith("x86_64")
    assert "onnxruntime==" in done.stderr
