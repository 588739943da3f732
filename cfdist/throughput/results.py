"""From a benchmark's figures to its results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from typing import Any

from cfdist.backends.model import BackendModel
from cfdist.config import Config
from cfdist.distributed.events import event_notes
from cfdist.distributed.plan import DevicePlan
from cfdist.distributed.rounds import EvaluationReport, EvaluationTask
from cfdist.distributed.work import item_work
from cfdist.execution import PictureSupply
from cfdist.report.evaluation import evaluation_results, preset_notes
from cfdist.report.results import (
    START_UP,
    Phases,
    Results,
    batch_statistics,
    damage_notes,
    device_time_rate,
)
from cfdist.throughput.device import LoopReport, common_rates
from cfdist.throughput.host import Faults, HostRate
from cfdist.throughput.latency import LEAST_PICTURES, STEPS, Latencies
from cfdist.widerface.manifest import Manifest

# The phases that an evaluation alone does not have.
_OWN_PHASES = ("host", "inference")


@dataclass
class Figures:
    """What was measured; `None` for a part that was not asked for.

    Attributes:
        model: What the devices ran.
        manifest: The pictures, each once.
        plan: The devices.
        host: What each number of reader threads reached.
        faults: What is wrong with pictures' files, as the host part found; those that it could not
            read are in none of its rates.
        loops: Device name -> what it did in the inference part.
        end_to_end: What the end-to-end part had to do, and what became of it.
    """

    model: BackendModel | None = None
    manifest: Manifest | None = None
    plan: DevicePlan | None = None
    host: Sequence[HostRate] | None = None
    faults: Faults = field(default_factory=Faults)
    loops: dict[str, LoopReport] | None = None
    end_to_end: tuple[EvaluationTask, EvaluationReport] | None = None


def benchmark_results(config: Config, figures: Figures, phases: Phases) -> Results:
    """The figures as they are written and shown.

    Args:
        config: The run's.
        figures: What was measured.
        phases: Those of `evaluation_results`, and "host" and "inference".
    """
    model, host = figures.model, figures.host
    whole = _evaluation(config, figures, phases)
    failures = dict([*figures.faults.failures, *(whole.failures if whole else [])])
    damaged = dict([*figures.faults.damaged, *(whole.damaged if whole else [])])
    inference = _inference_section(config, figures)
    is_simulated = model is not None and model.is_simulated
    total = len(figures.manifest.items) if figures.manifest else 0
    rates = _rates(whole, _missing_pictures(config, figures))
    return Results(
        job="benchmark",
        ap={},
        total=total,
        done=total - len(failures),
        failures=sorted(failures.items()),
        damaged=sorted(damaged.items()),
        seconds=_seconds(whole, phases),
        throughput=rates
        | {"pure_inference": inference["pictures_per_second"] if inference else None},
        devices=whole.devices if whole else [],
        model={"path": str(model.spec.path), "sha256": model.spec.sha256}
        if model and not is_simulated
        else None,
        backend=model.backend if model else None,
        batch=model.spec.batch if model else None,
        simulated=is_simulated,
        fingerprint=whole.fingerprint if whole else None,
        config=config.model_dump(),
        notes=(preset_notes(config) if is_simulated else [])
        + _notes(config, figures)
        + damage_notes(config, damaged),
        events=whole.events if whole else (),
        extra={
            **(whole.extra if whole else {}),
            "benchmark": {
                "scenario": "offline",
                "inference": inference,
                "host": [asdict(rate) for rate in host] if host else None,
                "end_to_end": {
                    "pictures": len(figures.end_to_end[0].manifest.items),
                    "steady_pictures_per_second": rates["steady"],
                    "end_to_end_pictures_per_second": rates["end_to_end"],
                    "cpu_ms_per_picture": whole.extra["cpu_ms_per_picture"],
                }
                if whole and figures.end_to_end
                else None,
                "bound": _bound_section(inference, figures),
            },
        },
    )


def latency_results(
    config: Config, model: BackendModel, manifest: Manifest, found: Latencies, phases: Phases
) -> Results:
    """The figures of one picture after another, as they are written and shown.

    Percentiles of a run that is too short are none: they are left out.

    Args:
        config: The run's.
        model: What the device ran.
        manifest: The pictures, each once.
        found: What was measured.
        phases: Those of `evaluation_results`.
    """
    too_few = found.missing_seconds is not None
    has_any = len(found.ms) > 0
    columns = {"whole": found.whole_ms, **dict(zip(STEPS, found.ms.T, strict=True))}
    notes = preset_notes(config) if model.is_simulated else []
    if not has_any:
        notes.append("every picture has failed: there is no latency")
    elif too_few:
        notes.append(
            f"{found.pictures} pictures in {found.seconds:.2g} s are too few for a 99th "
            f"percentile, which takes {LEAST_PICTURES}, about {found.missing_seconds:.2g} s: "
            f"benchmark.pictures={LEAST_PICTURES}"
        )
    elif config.dataset.kind == "sample":
        notes.append(_SAMPLE_NOTE)
    if len(found.ms) < found.pictures:
        notes.append(_part_note(len(found.ms), found.pictures, "pictures"))
    return Results(
        job="benchmark",
        total=len(manifest.items),
        done=len(manifest.items) - len(found.failures),
        failures=found.failures,
        damaged=found.damaged,
        seconds={
            **dict.fromkeys(("evaluation", "inference", "host")),
            "total": sum(phases.seconds.values()),
            "start_up": sum(phases.seconds.get(name, 0.0) for name in START_UP),
            "run": phases.seconds["run"],
            "shut_down": phases.seconds["shut_down"],
        },
        model=None
        if model.is_simulated
        else {"path": str(model.spec.path), "sha256": model.spec.sha256},
        backend=model.backend,
        batch=1,
        simulated=model.is_simulated,
        config=config.model_dump(),
        notes=notes + damage_notes(config, found.damaged),
        extra={
            "latency_ms": {
                name: None if too_few else batch_statistics(times.tolist())
                for name, times in columns.items()
            },
            "benchmark": {
                "scenario": "single_stream",
                "pictures": found.pictures,
                "measured_seconds": found.seconds,
                "runs_on": found.runs_on or None,
            },
        },
    )


def _missing_pictures(config: Config, figures: Figures) -> int | None:
    """How many pictures the end-to-end part should have; `None` if it lasted long enough."""
    if figures.end_to_end is None:
        return None
    task, report = figures.end_to_end
    seconds, least = report.timeline.seconds, config.benchmark.min_seconds
    if seconds >= least or not seconds:
        return None
    return ceil(len(task.manifest.items) * least / seconds)


def _evaluation(config: Config, figures: Figures, phases: Phases) -> Results | None:
    """The end-to-end part's results, as those of `job=evaluate` if it had run alone."""
    if figures.end_to_end is None:
        return None
    alone = Phases(0.0)
    alone.seconds = {k: v for k, v in phases.seconds.items() if k not in _OWN_PHASES}
    supply = PictureSupply(item_work, "device")
    return evaluation_results(config, *figures.end_to_end, supply, alone)


def _rates(whole: Results | None, missing: int | None) -> dict[str, float | None]:
    """The rates of the end-to-end part; none if it is too short, or every picture has failed."""
    if whole is None or whole.throughput is None or not whole.done:
        return {"steady": None, "end_to_end": None}
    return whole.throughput | ({"steady": None} if missing else {})


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
    batch = figures.model.spec.batch
    rates = common_rates(list(figures.loops.values()), batch)
    devices = [
        {
            "name": name,
            "runs_on": report.runs_on or None,
            "streams": len(report.ends),
            "batch_count": report.batches,
            "pictures_per_second": rate,
            "batch_ms": batch_statistics(report.batch_ms.tolist()),
            "device_ms": batch_statistics(report.device_ms),
        }
        for (name, report), rate in zip(figures.loops.items(), rates, strict=True)
    ]
    return {
        "loops": config.benchmark.loops,
        "input": config.benchmark.input,
        "pictures_per_second": sum(rates),
        "device_time_pictures_per_second": device_time_rate(devices, batch),
        "devices": devices,
    }


def _bound_section(inference: dict[str, Any] | None, figures: Figures) -> dict[str, Any] | None:
    """What bounds a run: the slower of its devices and its host.

    The host's rate is the best that was measured with at most the run's reader threads, or else
    that of the fewest. If inference takes the readers' cores, the two times of a picture add up.
    """
    model, plan, host = figures.model, figures.plan, figures.host
    if not inference or not model or not plan or not host:
        return None
    devices_rate = inference["pictures_per_second"]
    planned = [rate for rate in host if rate.readers <= plan.count * plan.readers]
    fewest = min(host, key=lambda rate: rate.readers)
    best = max(planned or [fewest], key=lambda rate: rate.pictures_per_second)
    together = None
    if model.kind == "cpu" and not model.is_simulated:
        reading = best.cpu_ms_per_picture / 1000 / (plan.count * plan.threads)
        together = 1 / (1 / devices_rate + reading)
    return {
        "bound_by": "host" if best.pictures_per_second < devices_rate else "devices",
        "devices_pictures_per_second": devices_rate,
        "host_pictures_per_second": best.pictures_per_second,
        "host_readers": best.readers,
        "shared_cores_pictures_per_second": together,
    }


def _part_note(kept: int, count: int, what: str) -> str:
    return f"times: of {count} {what} those of {kept}, which were chosen at random, were kept"


_SAMPLE_NOTE = (
    "the pictures are those of the embedded sample set; others may take longer to read "
    "(dataset=wider_val dataset.root=... dataset.ground_truth=...)"
)


def _notes(config: Config, figures: Figures) -> list[str]:
    notes = []
    manifest = figures.manifest
    if manifest and config.dataset.kind == "sample":
        notes.append(_SAMPLE_NOTE)
    if manifest and len(manifest.items) < config.benchmark.pictures:
        notes.append(
            f"the data set has {len(manifest.items)} pictures; they were repeated to make "
            f"{config.benchmark.pictures}"
        )
    loops = (figures.loops or {}).values()
    if any(len(ends) == 1 for one in loops for ends in one.ends):
        notes.append("the inference alone is the rate of a single batch; raise benchmark.loops")
    kept, count = sum(len(one.batch_ms) for one in loops), sum(one.batches for one in loops)
    if kept < count:
        notes.append(_part_note(kept, count, "batches"))
    if figures.faults.failures:
        notes.append("pictures that cannot be read are in none of the host's rates")
    if figures.end_to_end is None:
        return notes
    task, report = figures.end_to_end
    if len(report.evaluation.failures) == len(task.manifest.pictures):
        notes.append("every picture of the end-to-end part has failed: it has no rate")
    elif missing := _missing_pictures(config, figures):
        notes.append(
            f"the end-to-end part took {report.timeline.seconds:.2g} s, too short for a rate by "
            f"benchmark.min_seconds={config.benchmark.min_seconds:g}; so long it takes with about "
            f"benchmark.pictures={ceil(missing / config.dataset.repeat)}"
        )
    elif report.timeline.steady_rate is None:
        notes.append("too few pictures for a steady rate; raise benchmark.pictures")
    if config.cluster.joined is not None:
        notes.append("the processor time of a cluster that ran before is not known")
    return notes + event_notes(report.events)
