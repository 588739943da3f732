"""`job=doctor`: whether job=evaluate can run here as configured, and what to do where it cannot."""

from __future__ import annotations

from pathlib import Path

from cfdist.config import Config
from cfdist.doctor import packages
from cfdist.doctor.run import run_findings
from cfdist.doctor.table import can_run, table
from cfdist.errors import ExitCode


def main(config: Config, output: Path, started: float) -> int:
    """Look, and print what there is; the exit code is 0 if the run can start, else 1."""
    findings = [*packages.findings(), *run_findings(config, output)]
    print(table(findings))
    faults = sum(one.state == "FAULT" for one in findings)
    verdict = "can run as configured" if not faults else f"cannot run: {faults} FAULT"
    print(f"\njob=evaluate {verdict}{'S' if faults > 1 else ''}")
    return ExitCode.DONE if can_run(findings) else ExitCode.INTERNAL
