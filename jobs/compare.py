"""`job=compare`: did a conversion keep the model? The same pictures through two model files."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cfdist import backends, execution, inputs
from cfdist.backends.model import BackendModel
from cfdist.comparison.device import SIDES
from cfdist.comparison.dump import DumpedModel, match_dump
from cfdist.comparison.layers import (
    LayerModel,
    compare_layers,
    layers_section,
    letterboxed_pictures,
    load_side,
)
from cfdist.comparison.page import comparison_parts, layer_parts
from cfdist.comparison.run import run_comparison
from cfdist.comparison.tables import print_comparison, print_layers
from cfdist.comparison.tally import Tally
from cfdist.comparison.topology import Matched, match
from cfdist.config import Config, refuse_unused
from cfdist.distributed.events import event_notes
from cfdist.errors import UserError, did_you_mean
from cfdist.extensions import is_own_code
from cfdist.files import expanded
from cfdist.model.formats import OM, OPENVINO_IR, format_of
from cfdist.report import screen
from cfdist.report.accuracy import how_tested
from cfdist.report.page.run import write_run_report
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Results, damage_notes, phase_seconds


def main(config: Config, output: Path, started: float) -> int:
    """Compare, show and write the results; returns the exit code."""
    models = [find_side(config, side) for side in SIDES]
    refuse_unused(config, {model.backend for model in models})
    if config.compare.layers:
        return _by_layers(config, models, output, started)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    tally = Tally(truth, config.eval.protocol)
    with execution.start(config, models, streams=1, pictures=manifest.items) as there:
        screen.print_plan(config, there, manifest)
        ready = time.time()
        with PictureProgress(len(manifest.items), output) as progress:
            make_work = execution.device_work(config, there)
            events = run_comparison(there, manifest, make_work, tally, progress)
    ran = time.time()

    comparison = tally.summary(config.compare)
    for side, model in zip(SIDES, models, strict=True):
        about = {"path": str(model.spec.path), "sha256": model.spec.sha256}
        comparison[side] = about | {"backend": model.backend} | comparison[side]
    results = Results(
        job="compare",
        test=how_tested(config),
        total=len(manifest.items),
        done=len(manifest.items) - len(tally.failures),
        failures=sorted(tally.failures.items()),
        damaged=sorted(tally.damaged.items()),
        seconds=phase_seconds(started, ready, ran, time.time()),
        batch=models[0].spec.batch,
        config=config.model_dump(),
        notes=[*event_notes(events), *damage_notes(config, tally.damaged)],
        events=events,
        extra={"comparison": comparison},
    )
    print_comparison(comparison)
    screen.print_results(results)
    screen.print_path(results.write(output))
    places = {item.id: item.path for item in manifest.pictures}
    write_run_report(results, output, None, lambda: comparison_parts(comparison, tally, places))
    return results.exit_code


def _by_layers(config: Config, models: Sequence[BackendModel], output: Path, started: float) -> int:
    """Compare the tensors of two graphs, in this process; returns the exit code.

    Raises:
        UserError: the models are no such graphs, or no picture can be read.
    """
    if config.preprocess.size == "own":
        raise UserError(
            "preprocess.size=own: compare.layers takes letterboxed pictures; leave the preset that "
            "sets it out"
        )
    manifest = inputs.find_pictures(config.dataset, inputs.find_ground_truth(config.dataset))
    dump = config.compare.dump
    with tempfile.TemporaryDirectory() as folder:
        reference = load_side(models[0], "reference", Path(folder))
        candidate, matched = _beside(reference, models[1], dump, Path(folder))
        items = manifest.items[: 1 if dump else None]
        rows, failures = letterboxed_pictures(items, config.compare.pictures, reference)
        screen.console.inform(
            f"{len(matched.pairs)} tensors on {len(rows)} pictures of "
            f"dataset={config.dataset.name}, matched by {matched.how}"
            + (f"; the dump has to be of {items[0].id}" if dump else "")
        )
        ready = time.time()
        sums = compare_layers((reference, candidate), matched, rows, screen.console.inform)
    ran = time.time()
    comparison = layers_section(matched, sums, config.compare)
    for side, model in zip(SIDES, models, strict=True):
        about = {"path": str(model.spec.path), "sha256": model.spec.sha256}
        comparison[side] = about | {"backend": model.backend}
    results = Results(
        job="compare",
        total=len(rows) + len(failures),
        done=len(rows),
        failures=sorted(failures.items()),
        seconds=phase_seconds(started, ready, ran, time.time()),
        config=config.model_dump(),
        extra={"comparison": comparison},
    )
    print_layers(comparison)
    screen.print_remarks(results)
    screen.print_path(results.write(output))
    write_run_report(results, output, None, lambda: layer_parts(comparison))
    return results.exit_code


def _beside(
    reference: LayerModel, model: BackendModel, dump: str | None, folder: Path
) -> tuple[LayerModel | DumpedModel, Matched]:
    """The candidate and which of its tensors stand for the reference's.

    Raises:
        UserError: it has no such tensors.
    """
    if dump is None:
        candidate = load_side(model, "candidate", folder)
        return candidate, match(reference.graph, candidate.graph)
    if format_of(model.spec.path) is not OM:
        raise UserError(
            f"compare.dump={dump}: is read beside an OM, and candidate={model.spec.path} is none; "
            "leave it out"
        )
    return match_dump(reference.graph, expanded(dump))


def find_side(config: Config, side: str) -> BackendModel:
    """The model of "reference" or "candidate": "<file>" or "<backend>:<file>".

    Raises:
        UserError: not given, not there, or no backend for such a file.
    """
    given: str | None = getattr(config, side)
    if given is None:
        raise UserError(f"{side}: not given; name a model file, {side}=FILE")
    prefix, colon, rest = given.partition(":")
    if colon and prefix in backends.BACKENDS:
        backends.refuse_simulated(prefix, f"{side}={given}")
        if read := _read_for_layers(config, rest, side, prefix):
            return read
        return execution.model_on_backend(config, prefix, rest, side)
    own, _, file = rest.partition(":")
    if file and is_own_code(f"{prefix}:{own}"):
        return execution.model_on_backend(config, f"{prefix}:{own}", file, side)
    if rest and (hint := did_you_mean(prefix, [*backends.BACKENDS])):
        raise UserError(f"{side}={given}: no backend {prefix}{hint}")
    found = format_of(execution.model_spec(config.model, given, side).path)
    if found is None:
        raise UserError(
            f"{side}={given}: no backend is known for such a file; say which, "
            f"{side}=onnxruntime:{given} (or {', '.join(backends.BACKENDS)})"
        )
    if read := _read_for_layers(config, given, side):
        return read
    if not found.backends:
        also = ", or set compare.layers=true, which alone takes it" if found is OPENVINO_IR else ""
        raise UserError(f"{side}={given}: is {found.name}; {found.remedy}{also}")
    here = [name for name in found.backends if backends.is_installed(name)]
    return execution.model_on_backend(config, (*here, *found.backends)[0], given, side)


def _read_for_layers(
    config: Config, file: str, side: str, backend: str | None = None
) -> BackendModel | None:
    """An IR or an OM whose tensors are to be compared: no backend has to run it whole.

    Raises:
        UserError: a backend was asked for that reads no such file.
    """
    if not config.compare.layers:
        return None
    spec = execution.model_spec(config.model, file, side)
    found = format_of(spec.path)
    if found is None or found not in (OPENVINO_IR, OM):
        return None
    its_own = "om" if found is OM else "openvino"
    if backend not in (None, its_own):
        raise UserError(
            f"{side}={backend}:{file}: is {found.name}, which {backend} does not read; "
            f"give {side}={file}"
        )
    return BackendModel(its_own, spec)
