"""How the tools of the host are called, and what is said when one fails."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdist import ascend
from cfdist.ascend import (
    AIS_BENCH_OWN,
    CALLERS_PYTHONPATH,
    Limit,
    ToolCall,
    call_tool,
    check_options,
    reason_of,
    run_ais_bench,
    tool_environment,
)
from cfdist.ascend.atc import ATC_OWN
from cfdist.errors import StoppedError, UserError
from tests.fakes.ascend import install_double

# What ATC prints: the reason with its code, what to do, and a long trace.
E10001 = """\
ATC start working now, please wait for a moment.
...
ATC run failed, Please check the detail log, Try 'atc --help' for more information
E10001: 2023-03-30-11:22:33.123.456 Value [-1] for parameter [image] is invalid. Reason: no shape.
        Solution: Try again with a valid argument.
        TraceBack (most recent call last):
""" + "".join(f"        [Frame{i}][FUNC:GenerateModel][LINE:7{i}] internal\n" for i in range(12))
EZ3003 = """\
EZ3003: No supported Ops kernel and engine are found for [GatherElements_12], optype [X].
        Possible Cause: The operator is not supported by the system.
        Solution: 1. Check the OPP component. 2. Check the operator.
"""


def test_what_the_tool_prints_comes_back(tmp_path):
    (tmp_path / "here").touch()
    script = ["sh", "-c", "ls; echo trouble >&2; read line || echo no input"]
    assert call_tool("ls", script, "", tmp_path).split("\n")[:3] == ["here", "trouble", "no input"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("kill -SEGV $$", "tool was killed by SIGSEGV: it printed nothing; try again"),
        ("seq 9; exit 3", "tool failed with exit code 3: 5 | 6 | 7 | 8 | 9; try again"),
        ("exit 1", "tool failed with exit code 1: it printed nothing; try again"),
        ("exec sleep 30", "tool: no answer within 2 s; give it longer"),
    ],
)
def test_a_failure_is_one_line(script, message):
    with pytest.raises(UserError) as failure:
        call_tool("tool", ["sh", "-c", script], "try again", limit=Limit(2, "give it longer"))
    assert str(failure.value) == message


def test_a_tool_that_cannot_be_run(tmp_path):
    with pytest.raises(UserError, match=r"^tool: .*no_tool cannot be run \(No such file"):
        call_tool("tool", [str(tmp_path / "no_tool")], "")
    closed = tmp_path / "closed"
    closed.touch(mode=0o600)
    with pytest.raises(UserError, match=r"closed cannot be run \(Perm.*\); make it executable$"):
        call_tool("tool", [str(closed)], "")
    closed.chmod(0o700)  # and empty
    with pytest.raises(UserError, match=r"closed cannot be run \(Exec.*\); see that it is whole"):
        call_tool("tool", [str(closed)], "")


def test_the_reason_is_what_the_toolkit_marks():
    value, solution = reason_of(E10001).split(" | ")
    assert value.startswith("E10001: ")
    assert "Value [-1] for parameter [image]" in value
    assert solution == "Solution: Try again with a valid argument."
    assert reason_of(EZ3003 + E10001).split(" | ")[:3] == [
        line.strip() for line in EZ3003.splitlines()
    ]
    bench = "[INFO] begin\n[ERROR] open device 1 failed\n[INFO] end\n"
    assert reason_of(bench) == "[ERROR] open device 1 failed"
    trace = 'Traceback (most recent call last):\n  File "a.py"\nRuntimeError: no chip\n'
    assert reason_of(bench + trace) == "[ERROR] open device 1 failed | RuntimeError: no chip"
    assert reason_of("one\ntwo\n") == "one | two"


@pytest.mark.slow
@given(st.text())
def test_any_output_gives_a_reason_of_one_line(printed):
    reason = reason_of(printed)
    assert reason
    assert "\n" not in reason
    assert len(reason) < 2000


def is_alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("", "Z", "Zs")


@pytest.mark.slow
def test_a_tool_that_hangs_is_killed_with_its_children(tmp_path):
    script = f"echo started; sleep 300 & echo $! >{tmp_path}/child; wait"
    waited: list[float] = []
    with pytest.raises(UserError, match=r"within 1 s \(it last said: started\); longer; .*log"):
        limit, log = Limit(1, "longer"), tmp_path / "log"
        call_tool("tool", ["sh", "-c", script], "no", limit=limit, log=log, on_wait=waited.append)
    assert (tmp_path / "log").read_text() == "started\n"
    child = int((tmp_path / "child").read_text())
    until = time.monotonic() + 10
    while is_alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(child)


@pytest.mark.slow
def test_a_tool_at_work_is_told_of(monkeypatch):
    monkeypatch.setattr(ascend, "_WAIT_S", 0.1)
    waited: list[float] = []
    call_tool("tool", ["sleep", "0.5"], "", on_wait=waited.append)
    assert waited == sorted(waited)
    assert len(waited) >= 2


def test_the_log_holds_all_and_is_named(tmp_path):
    log = tmp_path / "tool.log"
    with pytest.raises(UserError, match=rf"5 \| 6 .*all that it printed: {log}"):
        call_tool("tool", ["sh", "-c", "seq 9; exit 1"], "", log=log)
    assert log.read_text().split() == [str(number) for number in range(1, 10)]


@pytest.mark.parametrize(
    ("path", "callers", "expected"),
    [
        ("own:/toolkit/python", "/toolkit/python", "/toolkit/python"),
        ("own:/toolkit/python", "", None),
        ("own:/toolkit/python", None, "/toolkit/python"),
        ("own", None, None),
        ("/toolkit/python", None, "/toolkit/python"),
        (None, None, None),
    ],
)
def test_the_toolkit_gets_the_callers_own_pythonpath(monkeypatch, path, callers, expected):
    own = str(Path(sys.prefix) / "lib" / "python3.11" / "site-packages")
    for name, value in (("PYTHONPATH", path), (CALLERS_PYTHONPATH, callers)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value.replace("own", own))
    assert tool_environment().get("PYTHONPATH") == expected
    assert CALLERS_PYTHONPATH not in tool_environment()
    printed = call_tool("tool", ["sh", "-c", 'echo "${PYTHONPATH-none}"'], "")
    assert printed == (expected or "none")


def test_options_that_are_taken():
    check_options("k", ["--precision_mode=force_fp16", "--op_debug_level=1"], ATC_OWN, "ATC")
    check_options("k", ["--profiler=1", "--debug", "--outfmt=NPY"], AIS_BENCH_OWN, "ais_bench")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--output=x", "--output of ATC, which cfdist sets itself"),
        ("--soc-version=x", "--soc_version of ATC, which cfdist sets itself"),
        ("--dynamic_batch_size=1,2", "--dynamic_batch_size of ATC"),
        ("-output=x", "is not an option of ATC; write each as --name=value"),
        ("precision_mode=x", "is not an option of ATC"),
        ("", "is not an option of ATC"),
        ("--", "is not an option of ATC"),
        ("1", "is not an option of ATC"),
    ],
)
def test_options_that_are_refused(option, words):
    with pytest.raises(UserError, match=f"^convert.extra: .*{words}"):
        check_options("convert.extra", [option], ATC_OWN, "ATC")


def test_an_option_twice_is_refused():
    with pytest.raises(UserError, match="k: --a is given twice"):
        check_options("k", ["--a=1", "--a=2"], ATC_OWN, "ATC")


@given(st.sampled_from(AIS_BENCH_OWN), st.integers(1, 30), st.sampled_from(["", "=1", "=a b"]))
def test_the_start_of_an_own_option_is_refused(name, length, value):
    with pytest.raises(UserError, match="which cfdist sets itself"):
        check_options("infer.cli_args", [f"--{name[:length]}{value}"], AIS_BENCH_OWN, "ais_bench")


def test_the_command_line_is_the_guides(monkeypatch, tmp_path):
    calls: list[list[str]] = []

    def call(what, command, advice, **_):
        calls.append(command)
        return "--divide_input DIVIDE_INPUT" if "--help" in command else ""

    monkeypatch.setattr(ascend, "call_tool", call)
    result = tmp_path / "result"
    for devices in (None, [0, 1]):
        how = ToolCall(devices, ["--loop=2"])
        run_ais_bench(Path("a b.om"), Path("bins"), result / "dumpout_bs4", 4, how)
    call = [
        *(sys.executable, "-m", "ais_bench", "--model", "a b.om", "--input", "bins"),
        *("--output", str(result), "--output_dirname", "dumpout_bs4", "--batchsize", "4"),
    ]
    several = ["--device", "0,1", "--divide_input", "1", "--loop=2"]
    assert calls == [[*call, "--loop=2"], [*call[:3], "--help"], [*call, *several]]


def prepare(monkeypatch, tmp_path, content: bytes = b"IMOD and no more") -> tuple[Path, Path]:
    """The double, an OM of some content and a folder with an input tensor."""
    install_double(monkeypatch)
    (tmp_path / "bins").mkdir()
    (tmp_path / "bins" / "a.bin").write_bytes(b"1234")
    (tmp_path / "net.om").write_bytes(content)
    return tmp_path / "net.om", tmp_path / "bins"


def test_a_failing_call_is_one_line_and_leaves_nothing(monkeypatch, tmp_path):
    om, bins = prepare(monkeypatch, tmp_path)
    with pytest.raises(UserError) as failure:
        run_ais_bench(om, bins, tmp_path / "out" / "dump", 1, ToolCall())
    message = str(failure.value)
    assert "\n" not in message
    assert "ais_bench failed with exit code 1" in message
    assert "145000" in message  # the tool's own last words
    assert not any((tmp_path / "out").iterdir())


def test_a_chip_that_fails_is_named(monkeypatch, tmp_path):
    folder = tmp_path / "out" / "dump"

    def call(what, command, advice, **_):
        if "--help" not in command:
            folder.mkdir(parents=True)
            (folder / "device0_0_summary.json").write_text("{}")
        return "[INFO] fine\n[ERROR] subprocess run failed error_callback:open device 3 failed\n"

    monkeypatch.setattr(ascend, "call_tool", call)
    with pytest.raises(UserError, match=r"^chip 3: .*\[ERROR\] .*open device 3 failed"):
        run_ais_bench(Path("net.om"), Path("bins"), folder, 1, ToolCall([0, 3]))
    assert not folder.exists()


@pytest.mark.slow
def test_without_pkg_resources_the_remedy_is_named(monkeypatch, tmp_path):
    om, bins = prepare(monkeypatch, tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "pkg_resources.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pkg_resources'\")"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("AIS_BENCH_DOUBLE_IMPORTS", "pkg_resources")
    with pytest.raises(UserError, match=r"infer\.cli=true: .* pip install 'setuptools<82'"):
        run_ais_bench(om, bins, tmp_path / "out" / "dump", 1, ToolCall())


@pytest.mark.slow
def test_a_tool_that_hangs_is_ended_and_named(monkeypatch, tmp_path):
    om, bins = prepare(monkeypatch, tmp_path)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    # It prints now and then for longer than the limit, and hangs then.
    text = "import time\nfor i in range(4): print(i, flush=True); time.sleep(0.5)\ntime.sleep(60)"
    (hidden / "endless.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hidden), os.environ["PYTHONPATH"]]))
    monkeypatch.setenv("AIS_BENCH_DOUBLE_IMPORTS", "endless")
    log, began = tmp_path / "log", time.monotonic()
    said = r"^python -m ais_bench hangs: no sign of life for 1 s \(it last said: 3\); see npu-smi"
    with pytest.raises(StoppedError, match=said) as stopped:
        run_ais_bench(om, bins, tmp_path / "out" / "dump", 1, ToolCall(log=log, timeout=1.0))
    assert stopped.value.exit_code == 1
    assert 2.5 < time.monotonic() - began < 30
    assert log.read_text() == "0\n1\n2\n3\n"
