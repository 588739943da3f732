"""`job=postprocess`: raw outputs to WIDER FACE prediction files, the guide's last step."""

from __future__ import annotations

import time
from pathlib import Path

from cfdist import execution, inputs
from cfdist.config import Config
from cfdist.distributed.session import session
from cfdist.errors import UserError
from cfdist.files import expanded
from cfdist.report import screen
from cfdist.report.progress import PictureProgress
from cfdist.report.results import Results, phase_seconds
from cfdist.storage import shown
from cfdist.workflow import files
from cfdist.workflow.stages import write_predictions

KEY = "postprocess.input"


def main(config: Config, output: Path, started: float) -> int:
    """Write the prediction files and the results; returns the exit code."""
    if config.postprocess.input is None:
        raise UserError(f"{KEY}: not given; name the folder of the files that job=infer left")
    source = expanded(config.postprocess.input).absolute()
    target = expanded(config.postprocess.output or output / "predictions").absolute()
    files.refuse_existing(target, "postprocess.output")
    spec, style = execution.conventions(config.model), config.eval.protocol
    found = files.find_outputs(source, KEY)
    truth = inputs.find_ground_truth(config.dataset)
    manifest = inputs.find_pictures(config.dataset, truth)
    for folder in sorted({source, *(path.parent for path in found.values())}):
        record = files.output_record(folder, spec, manifest.fingerprint)
        record.check(("convention", "height", "width", "fingerprint"), KEY)
    ids = files.ids_by_stem(item.id for item in manifest.items)
    remedy = "name the folder that job=infer left, and the dataset it was made from"
    usable, failures = files.match_outputs(found, manifest.items, spec, f"{KEY}={source}", remedy)

    cluster = config.cluster
    keep = cluster.keep_minutes
    with session(cluster.joined, cluster.dashboard, keep_minutes=keep) as dashboard:
        screen.print_dashboard(dashboard)
        ready = time.time()
        with PictureProgress(len(usable), output) as progress:
            progress.monitor.start(0)
            failures += write_predictions(usable, spec, target, style, progress.monitor.add)
    ended = time.time()

    notes = ["job=score gives the AP of these files"]
    if unknown := len({name.rpartition("_")[0] for name in found} - ids.keys()):
        notes.append(f"output files of {unknown} other names belong to no picture; left out")
    results = Results(
        job="postprocess",
        total=len(ids),
        done=len(ids) - len(failures),
        failures=sorted(failures),
        seconds=phase_seconds(started, ready, ended),
        config=config.model_dump(),
        notes=notes,
    )
    screen.console.print(
        f"{results.done} prediction files in {shown(target)}, written as eval={style} does, "
        f"{len(usable) / max(ended - ready, 1e-9):.1f} a second"
    )
    return screen.finish(results, output)
