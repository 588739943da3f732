"""Running candidates, and keeping what was found for a command that goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

from cfdist import __version__, execution
from cfdist.config import Config, flat
from cfdist.distributed.rounds import EvaluationReport
from cfdist.distributed.session import close_shared_session
from cfdist.errors import DiskFullError, StoppedError, UserError
from cfdist.execution import Execution
from cfdist.files import disk_as_user_error, write_text
from cfdist.machine import available_cores, cpu_model
from cfdist.monitoring import stream
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Phases
from cfdist.storage import shown
from cfdist.throughput.whole import evaluate_and_forget
from cfdist.tuning.candidates import Candidate, Variant
from cfdist.tuning.halving import Standing
from cfdist.widerface.ground_truth import GroundTruth
from cfdist.widerface.manifest import Manifest

TRIALS = "trials.json"
SCRATCH = ".trial"

_FEW = 16  # pictures of a candidate's first run, at least
_ENOUGH = 0.8  # of the time that a run was to take


@dataclass(frozen=True)
class Found:
    """What became of a run: pictures a second and the APs, or why there are none."""

    rate: float | None = None
    ap: Mapping[str, float] | None = None
    reason: str = ""


class Trials:
    """Runs candidates on the first pictures of a data set."""

    def __init__(
        self, config: Config, output: Path, truth: GroundTruth, manifest: Manifest
    ) -> None:
        """Look for what an earlier command has left in the folder.

        Raises:
            UserError: it is of another machine, version, model or data set, or damaged.
        """
        self._config, self._output = config, output
        self._data = truth, manifest
        self._digests: dict[Variant, str] = {}
        self._identity = _identity(config, manifest)
        self._kept: dict[str, dict[str, Any]] = {}
        path = output / TRIALS
        if not path.is_file():
            if "resume" in config.typed():
                raise UserError(f"resume={shown(output)}: holds no trials yet; begin anew")
            return
        try:
            content = json.loads(path.read_bytes())
            then, self._kept = content["identity"], content["trials"]
            # What was typed then is not to be tried now.
            config.mark_typed(config.typed() | set(content["typed"]))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{shown(path)}: damaged; remove it to begin anew") from None
        for name in sorted(self._identity.keys() | then.keys()):
            if then.get(name) != self._identity.get(name):
                raise UserError(
                    f"{shown(path)}: of a run of other settings, {name} was {then.get(name)}, is "
                    f"{self._identity.get(name)}; choose another output_dir, or remove the file to "
                    "begin anew"
                )

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._kept)

    def write(self) -> None:
        """Write what was found so far, and what a command that goes on has to know."""
        content = {
            "identity": self._identity,
            "typed": sorted(self._config.typed()),
            "trials": self._kept,
        }
        with disk_as_user_error(self._output):
            write_text(self._output / TRIALS, json.dumps(content, indent=1) + "\n")

    def accuracy(self, variant: Variant) -> Found:
        """The APs of a variant, by the chosen protocol, over all of the pictures."""
        batch = self._config.model.batch if "model.batch" in self._config.typed() else 1
        return self._once(f"AP of {variant}", Candidate(variant, None, batch), None, None)

    def measure(self, standing: Standing[Candidate], seconds: float, is_check: bool) -> None:
        """Run a candidate for some seconds, and note in its standing what was found."""
        again = ", again" if is_check else ""
        name = f"{standing.candidate}, {seconds:g} s{again}"
        found = self._once(name, standing.candidate, seconds, standing.rate)
        standing.rate, standing.reason, standing.seconds = found.rate, found.reason, seconds

    def _once(
        self, name: str, candidate: Candidate, seconds: float | None, rate: float | None
    ) -> Found:
        """What an earlier command has found, or else what is found now."""
        name = f"{name}, {self._digest(candidate.variant)}"
        if name not in self._kept:
            self._kept[name] = vars(self._run(candidate, seconds, rate))
            self.write()
        return Found(**self._kept[name])

    def _digest(self, variant: Variant) -> str:
        """Names the model's file, which may be another one by now."""
        if variant not in self._digests:
            try:
                self._digests[variant] = variant.model(self._config).spec.sha256[:16]
            except UserError:  # of this batch; the run says it
                self._digests[variant] = ""
        return self._digests[variant]

    def _run(self, candidate: Candidate, seconds: float | None, rate: float | None) -> Found:
        """Run a candidate for some seconds, or on each picture once.

        Args:
            candidate: What to run.
            seconds: How long; `None`: until each picture was done.
            rate: Its pictures a second, if they are known.
        """
        config = candidate.configured(self._config)
        total = len(self._data[1].items)
        pictures = total
        if seconds is not None:
            few = max(_FEW, 2 * candidate.batch * (candidate.streams or 1))
            pictures = few if rate is None else max(1, ceil(rate * seconds))
        try:
            model = candidate.variant.model(config)
            with execution.start(config, [model]) as there:
                while True:
                    report = self._evaluate(config, there, pictures)
                    took, evaluation = report.timeline.seconds, report.evaluation
                    if len(evaluation.failures) >= min(pictures, total):
                        return Found(reason=f"every picture failed: {evaluation.failures[0][1]}")
                    if seconds is None or took >= _ENOUGH * seconds:
                        ap = None if model.is_simulated else evaluation.ap[config.eval.protocol]
                        return Found(report.timeline.points[-1][1] / took, ap)
                    pictures = ceil(pictures * min(20.0, seconds / took) * 1.1)
        except DiskFullError:
            raise
        except UserError as error:
            return Found(reason=str(error))
        except StoppedError as error:
            with contextlib.suppress(Exception):  # it may be broken; the next run gets a new one
                close_shared_session(error)
            return Found(reason=str(error))

    def _evaluate(self, config: Config, there: Execution, pictures: int) -> EvaluationReport:
        """Evaluate so many pictures; on the screen only the runs' figures are shown."""
        progress = PictureProgress(pictures, self._output)
        listener = progress.listener(Phases(0.0), there.models[0])
        with progress if stream.is_on() else contextlib.nullcontext():
            scratch = self._output / SCRATCH
            return evaluate_and_forget(config, there, self._data, pictures, scratch, listener)[1]


def _identity(config: Config, manifest: Manifest) -> dict[str, Any]:
    """All that rates and APs depend on but the candidate, as JSON holds it."""
    values = flat(config.model_dump())
    kept = {key: one for key, one in values.items() if key.startswith(_DECIDING)}
    machine = {"cfdist": __version__, "processor": cpu_model(), "cores": available_cores()}
    found: dict[str, Any] = json.loads(
        json.dumps(kept | machine | {"pictures": manifest.fingerprint})
    )
    return found


# The keys on which rates and APs depend.
_DECIDING = ("model.", "backend.", "dataset.", "eval.protocol", "devices", "pipeline.")
