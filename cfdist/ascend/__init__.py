"""The Ascend host's tools: npu-smi lists the chips, ATC makes OM files, ais_bench runs them."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from cfdist.errors import ExitCode, StoppedError, UserError

_LAST_LINES = 5  # of a tool that fails and marks no line as its reason
_MOST_LINES = 6  # that an error message quotes
_MOST_CHARACTERS = 300  # of each of them
_WAIT_S = 30.0  # between two reports that a tool still works

# How the toolkit and its tools mark the reason of a failure: "E10001: ...", "EZ3003: ...".
_CODED = re.compile(r"E[A-Z0-9]\d{4}\b")
_REMEDY = re.compile(r"(?i)(solution|possible cause)\s*:")
_ERROR = re.compile(r"\[ERROR\]")

# run.sh puts the packages of .venv before the caller's PYTHONPATH and keeps that one here.
CALLERS_PYTHONPATH = "CFDIST_PYTHONPATH"


class Limit(NamedTuple):
    """How long a tool may take.

    Attributes:
        seconds: In all, or since its last sign of life.
        advice: What a person can do where they are too few.
        sign: What changes while the tool works; without a change it hangs, which is no bad input.
    """

    seconds: float
    advice: str
    sign: Callable[[], object] | None = None


def call_tool(
    what: str,
    command: Sequence[str],
    advice: str,
    folder: Path | None = None,
    limit: Limit | None = None,
    log: Path | None = None,
    on_wait: Callable[[float], None] | None = None,
) -> str:
    """Run a tool to its end; no process of it outlives a failure.

    Args:
        what: The tool's name, which begins an error message.
        command: The program and its arguments.
        advice: What the person can do about a failure, which ends an error message.
        folder: The current folder of the tool; `None`: this process's.
        limit: After which time the tool is killed; `None`: no limit.
        log: A file for all that the tool prints, which stays; `None`: none.
        on_wait: Called now and then with the seconds that the tool has worked.

    Returns:
        What the tool printed, errors included.

    Raises:
        UserError: the tool cannot be run, does not end in time or fails; the lines that say why are
            in the message.
        StoppedError: it has given no sign of life for too long.
        OSError: the log cannot be written.
    """
    whole = f"; all that it printed: {log}" if log else ""
    limit = limit or Limit(math.inf, advice)
    with open(log, "w+b") if log else tempfile.TemporaryFile() as output:
        try:
            status = _run(command, folder, output, limit, on_wait)
        except subprocess.TimeoutExpired:
            said = _printed(output).split("\n")[-1]
            at = f" (it last said: {said[:_MOST_CHARACTERS]})" if said and log else ""
            ending = f"{at}; {limit.advice}{whole}"
            if limit.sign is not None:
                text = f"{what} hangs: no sign of life for {limit.seconds:g} s{ending}"
                raise StoppedError(text, ExitCode.INTERNAL) from None
            raise UserError(f"{what}: no answer within {limit.seconds:g} s{ending}") from None
        except OSError as error:
            remedy = "see that it is whole, and that what its first line names is there"
            if error.errno == errno.EACCES:
                remedy = "make it executable"
            raise UserError(
                f"{what}: {command[0]} cannot be run ({error.strerror}); {remedy}"
            ) from None
        printed = _printed(output)
    if status:
        raise UserError(f"{what} {_how_it_ended(status)}: {reason_of(printed)}; {advice}{whole}")
    return printed


def _run(
    command: Sequence[str],
    folder: Path | None,
    output: IO[bytes],
    limit: Limit,
    on_wait: Callable[[float], None] | None,
) -> int:
    """Run a command in a process group of its own; returns its status, as `subprocess` counts."""
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=None if command[0] == sys.executable else tool_environment(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    started = since = time.monotonic()
    seen: object = None
    try:
        while True:
            try:
                return process.wait(min(since + limit.seconds - time.monotonic(), _WAIT_S))
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                signs = (os.fstat(output.fileno()).st_size, limit.sign()) if limit.sign else None
                if signs != seen:
                    since, seen = now, signs
                if now - since >= limit.seconds:
                    raise
                if on_wait is not None:
                    on_wait(now - started)
    finally:
        if process.returncode != 0:
            # ATC's own compilers are its children; they would go on without it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _printed(output: IO[bytes]) -> str:
    """All that a tool printed, without the line ends at its end."""
    output.seek(0)
    return output.read().decode(errors="replace").rstrip()


def _how_it_ended(status: int) -> str:
    if status > 0:
        return f"failed with exit code {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was killed by {name}"


def reason_of(printed: str) -> str:
    """The lines of a failed tool's output that say why it failed, on one line.

    They are those with the toolkit's error codes and the remedies that follow them, those of the
    level ERROR, and the last line of a Python traceback. If there is none, the last lines will do.
    """
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    coded = [line for line in lines if _CODED.match(line)]
    marked = [line for line in lines if _ERROR.search(line)]
    found = [line for line in lines if line in coded or (coded and _REMEDY.match(line))]
    if not coded:
        found = marked
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        found = [*found[: _MOST_LINES - 1], lines[-1]]
    elif not found:
        found = lines[-_LAST_LINES:]
    quoted = [line[:_MOST_CHARACTERS] for line in dict.fromkeys(found)][:_MOST_LINES]
    return " | ".join(quoted) or "it printed nothing"


def tool_environment() -> dict[str, str]:
    """The environment of the toolkit's own programs, which run on the system's Python.

    Their PYTHONPATH is the caller's. The packages of this Python, which run.sh puts first, are not
    theirs.
    """
    environment = dict(os.environ)
    path = environment.pop(CALLERS_PYTHONPATH, None)
    if path is None:
        own = str(Path(sys.prefix) / "lib")
        entries = environment.get("PYTHONPATH", "").split(os.pathsep)
        path = os.pathsep.join(
            entry for entry in entries if entry != own and not entry.startswith(own + os.sep)
        )
    environment.pop("PYTHONPATH", None)
    return environment | ({"PYTHONPATH": path} if path else {})


def check_options(key: str, options: Sequence[str], own: Collection[str], tool: str) -> None:
    """Refuse options for a tool that are no options, or that cfdist sets itself.

    Args:
        key: The configuration key that holds them, for messages.
        options: What the person gave; each is "--name=value" or "--name".
        own: Names of the options that cfdist sets.
        tool: The tool's name, for messages.

    Raises:
        UserError: an option is of another form, given twice, or cfdist's own. The start of an own
            name counts as that name, for ais_bench takes it for one.
    """
    names: set[str] = set()
    for option in options:
        found = re.fullmatch(r"--([A-Za-z][\w-]*)(=.*)?", option, re.DOTALL)
        if found is None:
            raise UserError(
                f"{key}: {option!r} is not an option of {tool}; write each as --name=value, as in "
                f"{key}=[--name=value,--other=value]"
            )
        name = found[1].replace("-", "_")
        taken = sorted(one for one in own if one.lower().startswith(name.lower()))
        if taken:
            raise UserError(
                f"{key}: {option} is --{taken[0]} of {tool}, which cfdist sets itself; leave it out"
            )
        if name in names:
            raise UserError(f"{key}: --{found[1]} is given twice; leave one out")
        names.add(name)


_AIS_BENCH = "python -m ais_bench"


@dataclass(frozen=True)
class ToolCall:
    """How the tool is called.

    Attributes:
        devices: The chips, each of which gets an equal contiguous share; `None`: the tool's choice.
        options: Its further options.
        log: A file for all that it prints; `None`: none.
        timeout: Seconds without a line printed or a file written after which it hangs; at first
            what a device may take to load its model.
    """

    devices: Sequence[int] | None = None
    options: Sequence[str] = ()
    log: Path | None = None
    timeout: float = 600.0


# What `run_ais_bench` sets, or what would take the raw outputs from where they are looked for.
AIS_BENCH_OWN = (
    *("model", "m", "input", "i", "output", "o", "output_dirname", "batchsize", "device", "d"),
    *("dymBatch", "dymHW", "dymDims", "dymShape", "dym_shape", "dymShape_range", "output_size"),
    *("auto_set_dymshape_mode", "auto_set_dymdims_mode", "output_batchsize_axis", "divide_input"),
    *("backend", "perf", "help"),
)


def run_ais_bench(model: Path, bins: Path, folder: Path, batch: int, call: ToolCall) -> str:
    """Infer all input tensors of a folder, and wait for the end.

    Args:
        model: The OM.
        bins: The folder of the input tensors.
        folder: The folder of the raw outputs, which the tool makes.
        batch: The OM's batch.
        call: How the tool is called.

    Returns:
        What the tool printed.

    Raises:
        UserError: the call failed; the message says on which chips, and the output folder is
            removed.
        StoppedError: the tool hangs; the output folder is removed, too.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    tool = [sys.executable, "-m", "ais_bench"]
    command = [*tool, "--model", str(model), "--input", str(bins)]
    command += ["--output", str(folder.parent), "--output_dirname", folder.name]
    command += ["--batchsize", str(batch)]
    devices = call.devices
    if devices is not None:
        command += ["--device", ",".join(map(str, devices))]
    advice = "see whether the OM, model.batch and the bins fit together, or leave infer.cli out"
    try:
        if devices and len(devices) > 1:
            # The newest generation gives every chip all files, unless it is told to share them.
            known = call_tool(_AIS_BENCH, [*tool, "--help"], advice)
            command += ["--divide_input", "1"] if "--divide_input" in known else []
        limit = Limit(
            call.timeout,
            "see npu-smi info for a chip that hangs; device.timeout=SECONDS gives it longer",
            lambda: sum(1 for _ in folder.rglob("*")),
        )
        printed = call_tool(
            _AIS_BENCH, [*command, *call.options], advice, limit=limit, log=call.log
        )
        if failing_chips(folder, devices):
            raise UserError(f"{_AIS_BENCH} did not finish: {reason_of(printed)}; {advice}")
        return printed
    except StoppedError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except UserError as error:
        failed = failing_chips(folder, devices)
        shutil.rmtree(folder, ignore_errors=True)
        if "No module named 'pkg_resources'" in str(error):
            raise UserError(
                "infer.cli=true: ais_bench's command line needs pkg_resources, which setuptools "
                f"has no more from 82 on; {sys.executable} -m pip install 'setuptools<82', or "
                "leave infer.cli out"
            ) from None
        raise UserError(f"{failed}: {error}" if failed else str(error)) from None


def chip_summaries(folder: Path, devices: Sequence[int]) -> list[Path]:
    """Where the tool leaves the summary of each of several chips, inside its output folder."""
    return [folder / f"device{device}_{i}_summary.json" for i, device in enumerate(devices)]


def failing_chips(folder: Path, devices: Sequence[int] | None) -> str:
    """The chips, "chip 1 and 3", that left no summary while others did; empty if there is none."""
    if devices is None or len(devices) < 2:
        return ""
    paths = chip_summaries(folder, devices)
    missing = [device for device, path in zip(devices, paths, strict=True) if not path.is_file()]
    if len(missing) == len(devices):
        return ""
    return f"chip {' and '.join(map(str, missing))}" if missing else ""
