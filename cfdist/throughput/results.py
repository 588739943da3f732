"""From a benchmark's figures to its results."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask
from cfdist.distributed.work import item_work
from cfdist.execution import PictureSupply
from cfdist.report.evaluation import evaluation_results, preset_notes, replacement_notes
from cfdist.report.results import START_UP, Phases, Results, batch_statistics
from cfdist.throughput.bound import find_bound
from cfdist.throughput.host import HostFigures
from cfdist.throughput.loops import LoopReport, common_rates
from cfdist.widerface.manifest import Manifest

# The phases that an evaluation alone does not have.
_OWN_PHASES = ("host", "inference")


@dataclass
class Figures:
    """What was measured; `None` for a part that was not asked for.

    Attributes:
        model: What the devices ran.
        manifest: The pictures, each once.
        host: What the host reached.
        plan: The devices.
        loops: Device name -> what it did in the inference part.
        end_to_end: What the end-to-end part had to do, and what became of it.
    """

    model: BackendModel | None = None
    manifest: Manifest | None = None
    host: HostFigures | None = None
    plan: DevicePlan | None = None
    loops: dict[str, LoopReport] | None = None
    end_to_end: tuple[EvaluationTask, EvaluationReport] | None = None

    @property
    def failures(self) -> list[tuple[str, str]]:
        """(picture id, reason) of the pictures that failed in any part, each once."""
        found = dict(self.host.failures) if self.host else {}
        if self.end_to_end:
            found |= dict(self.end_to_end[1].evaluation.failures)
        return sorted(found.items())


def benchmark_results(config: Config, figures: Figures, phases: Phases) -> Results:
    """The figures as they are written and shown.

    Args:
        config: The run's.
        figures: What was measured.
        phases: Those of `evaluation_results`, and "host" and "inference".
    """
    model, failures = figures.model, figures.failures
    whole = _evaluation(config, figures, phases)
    inference = _inference_section(config, figures)
    is_simulated = model is not None and model.is_simulated
    total = len(figures.manifest.items) if figures.manifest else 0
    rates = (whole.throughput if whole else None) or {}
    return Results(
        job="benchmark",
        ap={},
        total=total,
        done=total - len(failures),
        failures=failures,
        seconds=_seconds(whole, phases),
        throughput={
            "steady": rates.get("steady"),
            "end_to_end": rates.get("end_to_end"),
            "pure_inference": inference["pictures_per_second"] if inference else None,
        },
        devices=whole.devices if whole else [],
        model={"path": str(model.spec.path), "sha256": model.spec.sha256}
        if model and not is_simulated
        else None,
        backend=model.backend if model else None,
        batch=model.spec.batch if model else None,
        simulated=is_simulated,
        fingerprint=whole.fingerprint if whole else None,
        config=config.model_dump(),
        notes=(preset_notes(config) if is_simulated else []) + _notes(config, figures),
        extra={
            **(whole.extra if whole else {}),
            "benchmark": {
                "inference": inference,
                "host": [asdict(rate) for rate in figures.host.rates] if figures.host else None,
                "end_to_end": _end_to_end_section(whole, figures),
                "bound": _bound_section(inference, figures),
            },
        },
    )


def _evaluation(config: Config, figures: Figures, phases: Phases) -> Results | None:
    """The end-to-end part's results, as those of `job=evaluate` if it had run alone."""
    if figures.end_to_end is None:
        return None
    alone = Phases(0.0)
    alone.seconds = {k: v for k, v in phases.seconds.items() if k not in _OWN_PHASES}
    supply = PictureSupply(item_work, "device")
    return evaluation_results(config, *figures.end_to_end, supply, alone)


def _seconds(whole: Results | None, phases: Phases) -> dict[str, float | None]:
    """The results' `seconds`; run and evaluation are the end-to-end part's."""
    spent = phases.seconds
    return {
        "total": sum(spent.values()),
        "start_up": sum(spent.get(name, 0.0) for name in START_UP),
        **{name: whole.seconds[name] if whole else None for name in ("run", "evaluation")},
        **{name: spent.get(name) for name in ("shut_down", "inference", "host")},
    }


def _inference_section(config: Config, figures: Figures) -> dict[str, Any] | None:
    if figures.model is None or figures.loops is None:
        return None
    rates = common_rates(list(figures.loops.values()), figures.model.spec.batch)
    return {
        "loops": config.benchmark.loops,
        "input": config.benchmark.input,
        "pictures_per_second": sum(rates),
        "devices": [
            {
                "name": name,
                "streams": len(report.ends),
                "pictures_per_second": rate,
                "batch_ms": batch_statistics(report.batch_ms.tolist()),
                "device_ms": batch_statistics(report.device_ms),
            }
            for (name, report), rate in zip(figures.loops.items(), rates, strict=True)
        ],
    }


def _end_to_end_section(whole: Results | None, figures: Figures) -> dict[str, Any] | None:
    if whole is None or figures.end_to_end is None:
        return None
    rates = whole.throughput or {}
    return {
        "pictures": len(figures.end_to_end[0].manifest.items),
        "steady_pictures_per_second": rates["steady"],
        "end_to_end_pictures_per_second": rates["end_to_end"],
        "cpu_ms_per_picture": whole.extra["cpu_ms_per_picture"],
    }


def _bound_section(inference: dict[str, Any] | None, figures: Figures) -> dict[str, Any] | None:
    model, plan, host = figures.model, figures.plan, figures.host
    if inference is None or model is None or plan is None or host is None:
        return None
    shares_cores = model.kind == "cpu" and not model.is_simulated
    readers, threads = plan.count * plan.readers, plan.count * plan.threads
    rate = inference["pictures_per_second"]
    return asdict(find_bound(rate, host.rates, readers, threads if shares_cores else None))


def _notes(config: Config, figures: Figures) -> list[str]:
    notes = []
    manifest = figures.manifest
    if manifest and config.dataset.kind == "sample":
        notes.append(
            "the pictures are those of the embedded sample set; others may take longer to read "
            "(dataset=wider_val dataset.root=... dataset.ground_truth=...)"
        )
    if manifest and len(manifest.items) < config.benchmark.pictures:
        notes.append(
            f"the data set has {len(manifest.items)} pictures; they were repeated to make "
            f"{config.benchmark.pictures}"
        )
    if figures.host and figures.failures:
        notes.append("pictures that cannot be read are in none of the host's rates")
    if figures.end_to_end is None:
        return notes
    _, report = figures.end_to_end
    if report.timeline.steady_rate is None:
        notes.append("too few pictures for a steady rate; raise benchmark.pictures")
    if config.cluster.address is not None:
        notes.append("the processor time of a cluster that ran before is not known")
    return notes + replacement_notes(report.lost)
