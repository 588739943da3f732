"""Names of any kind, and screens that go away: what is typed arrives, and no results are lost."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfdist.inputs import SAMPLE_FOLDER
from cfdist.sample import ensure_sample
from tests.conftest import PROJECT

MAIN = [sys.executable, str(PROJECT / "main.py")]
RUN = ("model.height=128", "model.width=128", "cluster.dashboard=false", "backend=openvino")
NAMES = ["20250614_153000", "a${b}c", "文件 é", "my\\preds", "caf\udce9", "[a, b]=~'x'"]


@pytest.fixture
def command(warm_command):
    """Not one of these tests is about how a command starts."""
    return warm_command


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> Path:
    """A folder with a prediction file for each picture of the sample set; none finds a face."""
    folder = tmp_path_factory.mktemp("predictions")
    for picture in ensure_sample(SAMPLE_FOLDER).root.glob("WIDER_val/images/*/*.jpg"):
        path = folder / picture.parent.name / f"{picture.stem}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{picture.name}\n1\n10 10 20 20 0.5\n")
    return folder


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    """A line of bash with `$MAIN` in it; the exit code is that of its first command."""
    main = " ".join(MAIN)
    return subprocess.run(
        ["bash", "-c", f"{line.replace('$MAIN', main)}; exit ${{PIPESTATUS[0]}}"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=200,
    )


def test_names_are_the_text_that_was_typed(command, tmp_path, predictions):
    for name in NAMES[:-1]:
        shutil.copytree(predictions, tmp_path / name)
    for name in NAMES[1:3]:
        done = command("job=score", f"predictions={name}", f"output_dir=out {name}")
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / f"out {name}" / "results.json").read_text())
        assert results["config"]["predictions"] == name
        assert f"out {name}/results.json\n" in done.stdout

    values = ",".join(NAMES[:-1])
    done = command("-m", "job=score", f"predictions={values}", "output_dir=2024_06_14")
    assert done.returncode == 0, done.stderr
    for number, name in enumerate(NAMES[:-1]):
        results = json.loads((tmp_path / "2024_06_14" / str(number) / "results.json").read_text())
        assert results["config"]["predictions"] == name
    table = (tmp_path / "2024_06_14" / "sweep.csv").read_text()
    assert "20250614_153000" in table
    assert "a${b}c" in table


def test_a_screen_that_cannot_show_a_name_shows_escapes(tmp_path):
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = shell("$MAIN job=score predictions=$'caf\\xe9'", tmp_path, **plain)
    assert done.returncode == 2
    assert done.stderr.startswith(b"cfdist: predictions=caf\\udce9: no such folder; give ")
    assert done.stderr.count(b"\n") == 1


def test_a_pipe_that_closes_loses_no_results(tmp_path):
    run = f"$MAIN {' '.join(RUN)} dataset.limit=4"
    done = shell(f"{run} output_dir=piped 2>&1 | head -1", tmp_path)
    assert done.returncode == 0
    assert done.stdout == b"starting job=evaluate ...\n"
    done = shell(f"{run} output_dir=closed >&- 2>&-", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    for folder in (tmp_path / "piped", tmp_path / "closed"):
        assert json.loads((folder / "results.json").read_text())["pictures"]["done"] == 4
        assert not (folder / "journal").exists()


UP_TO_THE_FIRST_LINE = """
import os, sys, time
from cfdist.command import cli, start

def first(text):
    heavy = {"cv2", "numpy", "onnx", "pandas", "pyarrow", "ray", "rich", "scipy", "torch"}
    loaded = sorted(heavy & sys.modules.keys())
    print(text, loaded, time.process_time(), file=cli.terminal.out(), flush=True)
    os._exit(0)

cli.say = first
start.main()
"""


def test_what_takes_long_to_import_waits_for_the_first_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_THE_FIRST_LINE, "experiment=quick"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    text, _, seconds = done.stdout.rpartition(" ")
    assert text == "starting job=evaluate ... []", done.stderr
    assert float(seconds) < 2, "on an idle machine this takes a third of a second"


# What a command of a few pictures imports in its own process, from its start to its end.
TO_THE_END = """
import sys
from cfdist.command.start import main
code = main()
print(code, sorted({"ray.data", "pandas", "scipy", "matplotlib"} & sys.modules.keys()))
"""


def test_a_short_command_does_without_ray_data_and_pandas(tmp_path):
    simulated = ("backend=simulated", "backend.latency_ms=0")
    arguments = [*simulated, "dataset.limit=16", "output_dir=short", "quiet=true"]
    done = subprocess.run(
        [sys.executable, "-c", TO_THE_END, *arguments],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=os.environ | {"PYTHONPATH": str(PROJECT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr


def test_a_page_that_is_cut_short_is_no_error(tmp_path):
    done = shell("$MAIN --help | head -1", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith(b"cfdist: ")
    assert done.stderr == b""


@pytest.mark.parametrize("setting", ["output_dir=file/out", "output_dir=/proc/nowhere"])
def test_a_folder_that_cannot_be_made_is_one_line(command, tmp_path, setting):
    (tmp_path / "file").touch()
    done = command("job=score", "predictions=x", setting)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert setting.partition("=")[2] in line
    assert "choose another" in line


def test_a_terminal_shows_something_within_a_second_and_ctrl_c_many_times_is_one_line(tmp_path):
    began = time.monotonic()
    child, screen = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.execv(sys.executable, [*MAIN, *RUN, "dataset.repeat=50", "output_dir=out"])
    shown = os.read(screen, 1000)
    first = time.monotonic() - began
    assert shown == b"starting ...\r"
    presses = 0
    while True:
        try:
            shown += os.read(screen, 10_000)
        except OSError:  # the process has closed the terminal
            break
        if b"/s ETA 0:" in shown:
            for _ in range(4 - presses):
                os.write(screen, b"\x03")
                presses += 1
                time.sleep(0.05)
    _, status = os.waitpid(child, 0)
    text = shown.decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 130, text[-2000:]
    assert presses == 4
    assert text.count("cfdist: interrupted; go on with: ") == 1
    assert "Traceback" not in text
    assert first < 15, "on an idle machine this takes a tenth of a second"
