"""A run's figures and plots for MLflow, Weights & Biases and TensorBoard, for who asks for it.

What cannot be logged never fails a run: its results are on disk.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cfdist.config import LogConfig, flat
from cfdist.errors import UserError
from cfdist.files import CONFIG, RESULTS, expanded, missing_folders, remove_empty
from cfdist.report.screen import console
from cfdist.storage import shown

# Key of `log` -> (package that is imported, what pip installs).
PACKAGES = {
    "mlflow": ("mlflow", "mlflow-skinny"),
    "wandb": ("wandb", "wandb"),
    "tensorboard": ("tensorboardX", "tensorboardX"),
}
_SECTIONS = ("ap", "throughput", "seconds", "pictures", "comparison", "latency_ms")
_MOST_PARAMETERS = 100  # that MLflow takes at once
_LONGEST_PARAMETER = 500  # characters
_EXPERIMENT = "cfdist"
# By default MLflow tries a server that does not answer for a quarter of an hour.
_MLFLOW_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3"}
# Before a run somebody waits for the answer.
_MLFLOW_ASKED = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}

log = logging.getLogger(__name__)


def check_trackers(config: LogConfig) -> None:
    """Refuse, before the run, a tracker that cannot be used.

    Raises:
        UserError: its package is missing, or MLflow cannot use its URI or gets no answer there.
        OSError: the folder cannot be made.
    """
    for name, target in config.model_dump().items():
        package, distribution = PACKAGES[name]
        if target is not None and importlib.util.find_spec(package) is None:
            raise UserError(
                f"log.{name}={target}: the Python package {package} is not installed; get it: "
                f"`pip install {distribution}`, or leave the key out"
            )
    if config.mlflow is not None:
        try:
            _ask_mlflow(config.mlflow)
        except Exception as error:  # whatever the package raises
            reason = _reason(error).partition(". ")[0]
            raise UserError(
                f"log.mlflow={config.mlflow}: cannot be used ({reason}); "
                "give a server or a database (docs/api.md), or leave the key out"
            ) from None
    if config.tensorboard is not None:
        folder = expanded(config.tensorboard)
        new = missing_folders(folder)
        folder.mkdir(parents=True, exist_ok=True)
        remove_empty(new)


def track(config: LogConfig, output: Path) -> None:
    """Log the results in a run's folder; a tracker that fails is a line on the screen."""
    for name, target in config.model_dump().items():
        if target is None:
            continue
        try:
            results = json.loads((output / RESULTS).read_text(encoding="utf-8"))
            _LOGGERS[name](target, results, output)
        except Exception as error:  # whatever the package raises
            log.warning("log.%s failed", name, exc_info=True)
            console.print(f"note: log.{name}={target}: nothing logged: {_reason(error)}")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


@functools.cache  # a sweep asks once: a later run does not fail by a tracker
def _ask_mlflow(target: str) -> None:
    """Raise what MLflow raises of a URI that it cannot use, or a server that does not answer."""
    if target.startswith("sqlite:"):  # asking would make the database
        import sqlalchemy  # noqa: F401

        return
    import mlflow

    ours = {name: value for name, value in _MLFLOW_ASKED.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        mlflow.MlflowClient(tracking_uri=target).get_experiment_by_name(_EXPERIMENT)
    finally:
        for name in ours:
            del os.environ[name]


def figures(results: Mapping[str, Any]) -> dict[str, float]:
    """Name ("ap/official/hard") -> figure, of those that a run has."""
    found = {}
    for section in _SECTIONS:
        for name, value in _inner(results.get(section) or {}, f"{section}/"):
            if isinstance(value, bool | int | float):
                found[name] = float(value)
    return found


def settings(results: Mapping[str, Any]) -> dict[str, Any]:
    """Key -> value of the run's configuration, with what it was computed by."""
    names = ("backend", "simulated", "fingerprint", "test")
    return flat(results["config"]) | {name: results.get(name) for name in names}


def _inner(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _inner(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _files(output: Path) -> list[Path]:
    """The files of a run that go with its figures."""
    plots = [*sorted(output.glob("*.png")), *sorted(output.glob("*.html"))]
    return [path for path in (output / RESULTS, output / CONFIG, *plots) if path.is_file()]


def _name(output: Path) -> str:
    """A run's name: its folder's, in a sweep with the sweep's before it."""
    parts = PurePosixPath(shown(output)).parts
    return "/".join(parts[-2:]) if output.name.isdigit() else parts[-1]


def _mlflow(target: str, results: Mapping[str, Any], output: Path) -> None:
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each step
    for name, value in _MLFLOW_LIMITS.items():
        os.environ.setdefault(name, value)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(target)
    try:
        # A caller from Python may be in a run of its own, and has an experiment of its own.
        where = _mlflow_experiment(mlflow.MlflowClient())
        with mlflow.start_run(experiment_id=where, run_name=_name(output), nested=True):
            found = [(k, str(v)[:_LONGEST_PARAMETER]) for k, v in settings(results).items()]
            for start in range(0, len(found), _MOST_PARAMETERS):
                mlflow.log_params(dict(found[start : start + _MOST_PARAMETERS]))
            mlflow.log_metrics(figures(results))
            mlflow.set_tags({k: str(v) for k, v in results["provenance"].items()})
            for path in _files(output):
                mlflow.log_artifact(str(path))
    finally:
        mlflow.set_tracking_uri(before)


def _mlflow_experiment(client: Any) -> str:
    """The id of the experiment, which is made if it is not there."""
    found = client.get_experiment_by_name(_EXPERIMENT)
    if found is None:
        try:
            return str(client.create_experiment(_EXPERIMENT))
        except Exception:  # another command has made it meanwhile
            found = client.get_experiment_by_name(_EXPERIMENT)
            if found is None:
                raise
    return str(found.experiment_id)


def _wandb(target: str, results: Mapping[str, Any], output: Path) -> None:
    import wandb

    with wandb.init(
        project=target,
        name=_name(output),
        dir=str(output),
        config=settings(results),
        settings=wandb.Settings(silent=True, console="off"),
        reinit="create_new",  # a caller from Python may be in a run of its own
    ) as run:
        run.log(figures(results))
        run.log({path.stem: wandb.Image(str(path)) for path in output.glob("*.png")})
        artifact = wandb.Artifact(f"results-{run.id}", type="results")
        for path in _files(output):
            artifact.add_file(str(path))
        run.log_artifact(artifact)


def _tensorboard(target: str, results: Mapping[str, Any], output: Path) -> None:
    import cv2
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(expanded(target) / _name(output))) as writer:
        for name, value in figures(results).items():
            writer.add_scalar(name, value, 0)
        lines = (f"    {key}: {value}" for key, value in settings(results).items())
        writer.add_text("settings", "\n".join(lines), 0)
        for path in output.glob("*.png"):
            picture = cv2.imread(str(path))
            if picture is not None:
                writer.add_image(path.stem, picture[..., ::-1], 0, dataformats="HWC")


_LOGGERS: Mapping[str, Callable[[str, Mapping[str, Any], Path], None]] = {
    "mlflow": _mlflow,
    "wandb": _wandb,
    "tensorboard": _tensorboard,
}
