"""`job=compare`: did a conversion keep the model? The same pictures through two model files."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cfdist import backends, inputs
from cfdist.command.exit_codes import ExitCode
from cfdist.comparison import BoxAgreement, HeadDifference, compare_boxes
from cfdist.config import CompareConfig, Config
from cfdist.distributed import cluster
from cfdist.distributed.memory import needed_bytes, refuse_too_large
from cfdist.errors import UserError
from cfdist.model import ModelSpec
from cfdist.report import screen
from cfdist.report.results import Results, chosen_first, phase_seconds
from cfdist.widerface.ground_truth import DIFFICULTIES, GroundTruth
from cfdist.widerface.metric import WiderFaceMetric
from cfdist.widerface.predictions import STYLES, rows

BACKEND_OF_SUFFIX = {".onnx": "openvino", ".pth": "torch", ".pt": "torch", ".om": "om"}
KINDS = ("npu", "gpu", "cpu")  # what the rarer device is, both models run beside


def main(config: Config, output: Path, started: float) -> int:
    """Compare, show and write the results; returns the exit code."""
    options = config.backend.model_dump()
    reference = find_side(config, "reference")
    candidate = find_side(config, "candidate")
    for backend, spec in (reference, candidate):
        backends.backend_class(backend).check(spec, options)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    tally = Tally(truth, reference[1], config.eval.protocol)

    kinds = [
        backends.backend_class(backend).device_kind(options)
        for backend in (reference[0], candidate[0])
    ]
    kind = min(kinds, key=KINDS.index)

    def refuse(count: int, threads: int = 1) -> None:
        first, second = (
            (spec, backends.backend_class(backend), own_kind, count, 1, threads)
            for (backend, spec), own_kind in zip((reference, candidate), kinds, strict=True)
        )
        refuse_too_large(*first, besides=needed_bytes(*second))

    if config.cluster.address is None:
        refuse(1)
    with cluster.session(
        config.cluster.address, config.cluster.dashboard, kind, config.devices
    ) as dashboard:
        plan = cluster.plan_devices(
            kind,
            config.devices,
            feeders=config.pipeline.readers,
            streams=1,
            slot_bytes=1,
        )
        if config.cluster.address is None:
            refuse(plan.count, plan.threads)
        screen.print_plan(
            config, f"{reference[0]} and {candidate[0]}", reference[1], manifest, plan, dashboard
        )
        ready = time.time()
        with screen.PictureProgress(len(manifest.items)) as progress:
            _run(config, options, plan, reference, candidate, manifest, tally, progress)
    ran = time.time()

    comparison = tally.summary(config.compare)
    for name, (backend, spec) in (("reference", reference), ("candidate", candidate)):
        about = {"path": str(spec.path), "sha256": spec.sha256, "backend": backend}
        comparison[name] = about | {"ap": chosen_first(comparison[name], config.eval.protocol)}
    ended = time.time()
    results = Results(
        job="compare",
        ap={},
        total=len(manifest.items),
        done=len(manifest.items) - len(tally.failures),
        failures=sorted(tally.failures.items()),
        seconds=phase_seconds(started, ready, ran, ended),
        batch=reference[1].batch,
        config=config.model_dump(),
        extra={"comparison": comparison},
    )
    screen.print_comparison(comparison)
    screen.print_results(results)
    screen.print_path(results.write(output))
    return results.exit_code if comparison["within_tolerance"] else ExitCode.PAST_TOLERANCE


def find_side(config: Config, side: str) -> tuple[str, ModelSpec]:
    """The backend and the model of "reference" or "candidate": "<file>" or "<backend>:<file>".

    Raises:
        UserError: not given, not there, or no backend for such a file.
    """
    given: str | None = getattr(config, side)
    if given is None:
        raise UserError(f"{side}: not given; name a model file, {side}=FILE")
    prefix, colon, rest = given.partition(":")
    if colon and prefix in backends.BACKENDS:
        backends.refuse_simulated(prefix, f"{side}={given}")
        return backends.resolve(prefix), inputs.model_spec(config.model, rest)
    spec = inputs.model_spec(config.model, given)
    backend = BACKEND_OF_SUFFIX.get(spec.path.suffix.lower())
    if backend is None:
        raise UserError(
            f"{side}={given}: no backend is known for {spec.path.suffix or 'a file without suffix'}"
            f"; say which, {side}=onnxruntime:{given} (or {', '.join(backends.BACKENDS)})"
        )
    return backends.resolve(backend), spec


@dataclass
class Tally:
    """What the devices' batches add up to."""

    truth: GroundTruth
    spec: ModelSpec
    style: str
    heads: dict[str, HeadDifference] = field(default_factory=dict)
    has_heads: bool = True
    boxes: BoxAgreement = field(default_factory=BoxAgreement)
    failures: dict[str, str] = field(default_factory=dict)
    metrics: tuple[WiderFaceMetric, WiderFaceMetric] = field(
        default_factory=lambda: (WiderFaceMetric(), WiderFaceMetric())
    )

    def add(self, batch: Any) -> None:
        """Take in a `ComparedBatch`."""
        from cfdist.distributed.device import decode_detections

        if batch.heads is None:
            self.has_heads = False
        for name, difference in (batch.heads or {}).items():
            self.heads[name] = self.heads.get(name, HeadDifference()) + difference
        sides = [decode_detections(side, self.spec) for side in (batch.reference, batch.candidate)]
        for pair in zip(*sides, strict=True):
            error = next((found.error for found in pair if found.error is not None), None)
            if error is not None:
                self.failures[pair[0].id] = error
                continue
            self.boxes += compare_boxes(*pair)
            for metric, found in zip(self.metrics, pair, strict=True):
                table = rows(found.boxes, found.scores, STYLES[self.style])
                metric.update(self.truth[found.id], table[:, :4], table[:, 4])

    def summary(self, limits: CompareConfig) -> dict[str, Any]:
        """The results' `comparison` section; APs under "reference" and "candidate"."""
        reference, candidate = (metric.compute() for metric in self.metrics)
        ap_difference = {
            protocol: {name: candidate[protocol][name] - ap[name] for name in DIFFICULTIES}
            for protocol, ap in reference.items()
        }
        heads = {
            name: {"max": d.largest, "mean": d.mean, "cosine": d.cosine}
            for name, d in (self.heads if self.has_heads else {}).items()
        }
        within = {
            "ap": all(
                abs(value) <= limits.ap for ap in ap_difference.values() for value in ap.values()
            ),
            "boxes": min(self.boxes.found_share, self.boxes.confirmed_share) >= limits.boxes,
            "cosine": all(head["cosine"] >= limits.cosine for head in heads.values()),
        }
        found = max(1, self.boxes.found)
        return {
            "reference": reference,
            "candidate": candidate,
            "ap_difference": ap_difference,
            "heads": heads or None,
            "boxes": asdict(self.boxes)
            | {
                "found_share": self.boxes.found_share,
                "confirmed_share": self.boxes.confirmed_share,
                "mean_score_difference": self.boxes.score_difference / found,
            },
            "within": within,
            "within_tolerance": all(within.values()),
        }


def _run(config, options, plan, reference, candidate, manifest, tally, progress) -> None:
    """Run the pictures through the comparing devices; raises what a device ran into."""
    from cfdist.backends.base import DeviceSettings
    from cfdist.distributed.chunks import Work
    from cfdist.distributed.comparing_device import ComparedBatch, ComparingDevice
    from cfdist.distributed.device_pool import DevicePool

    classes = [backends.backend_class(backend) for backend, _ in (reference, candidate)]
    pool = DevicePool(
        plan,
        ComparingDevice,
        (reference, candidate, DeviceSettings(plan.threads, 1, options=options), plan.feeders),
        reference[1].batch,
        group=max(one.group for one in classes),
    )

    def take(_: str, batch: ComparedBatch) -> None:
        tally.add(batch)
        failed = len(batch.reference.failures)
        progress.advance(len(batch.reference.ids) + failed, failed)

    try:
        pool.start()
        progress.start(0)
        problems = pool.run_round(Work(manifest.items), take)
        if problems:
            raise problems[0]
    finally:
        pool.kill()
