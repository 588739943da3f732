"""The jobs as functions: settings in, typed results out."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, TypeVar, Union

from omegaconf import OmegaConf

from cfdist import config
from cfdist.api.surroundings import alone, caller_has_ray
from cfdist.api.types import Comparison, Detection, Evaluation, Run, Score
from cfdist.command import cli
from cfdist.command.arguments import asks_for_multirun, prepare_arguments
from cfdist.command.resuming import run_to_go_on
from cfdist.command.run_folder import read_results
from cfdist.config.overrides import as_typed
from cfdist.config.schema import all_fields
from cfdist.distributed.nodes import cluster_nodes
from cfdist.errors import ExitCode, StoppedError, UserError
from cfdist.storage import path_or_uri, shown, working_folder

InputError = UserError

# What the command's screen shows.
_OF_THE_COMMAND = ("progress", "quiet", "verbose")

Value = Union[str, "PurePath", float, bool, None, Sequence["Value"], Mapping[str, "Value"]]
Settings = Mapping[str, Value]

_R = TypeVar("_R", bound=Run)


def evaluate(settings: Settings | None = None, *, show: bool = False) -> Evaluation:
    """Run `job=evaluate`: the AP and the speed of a model on a data set.

    Args:
        settings: Key -> value, the keys of the command line: `{"model.batch": 4, "devices": 2}`.
        show: Print what the command prints.

    Raises:
        InputError: bad input; one line says what is wrong, where, and what to do.
        StoppedError: the run ended early; `resume` goes on with it.
    """
    return _run(Evaluation, "evaluate", settings, show)


def score(settings: Settings, *, show: bool = False) -> Score:
    """Run `job=score`: the AP of predictions, whoever wrote them. See `evaluate`."""
    return _run(Score, "score", settings, show)


def compare(settings: Settings, *, show: bool = False) -> Comparison:
    """Run `job=compare`: whether two model files agree on the same pictures. See `evaluate`."""
    return _run(Comparison, "compare", settings, show)


def detect(settings: Settings, *, show: bool = False) -> Detection:
    """Run `job=detect`: the faces in any pictures. See `evaluate`."""
    return _run(Detection, "detect", settings, show)


def _run(kind: type[_R], job: str, settings: Settings | None, show: bool) -> _R:
    """Run a job; returns what it found.

    Raises:
        InputError: bad input.
        StoppedError: the run ended early.
    """
    started, output = time.time(), None
    runs: list[_R] = []

    def look() -> None:  # the files of a run whose folder is a URI are only here now
        assert output is not None
        runs.append(kind.of(output, read_results(output)))

    with alone(show):
        try:
            arguments = _arguments(job, settings or {})
            composed = config.compose_prepared(*arguments)
            typed = config.typed_keys(arguments)
            composed = run_to_go_on(composed, typed)
            checked = config.load(composed, typed)
            output = _folder(checked.output_dir, is_given=bool({"output_dir", "resume"} & typed))
            checked.output_dir = shown(output)
            composed.output_dir = config.literal(checked.output_dir)
            config_yaml = OmegaConf.to_yaml(composed, resolve=True)
            _, error = cli.run_in_folder(checked, config_yaml, output, started, look)
        except StoppedError:
            raise
        except Exception as refused:
            code, line = cli.explain(refused, output)
            if code == ExitCode.INTERNAL:
                raise
            raise UserError(line) from None
        if error is not None:
            raise error
        return runs[0]


def _arguments(job: str, settings: Settings) -> list[str]:
    """The settings as a command line has them.

    Raises:
        UserError: a value of another kind, a sweep, or another cluster than the caller's.
    """
    given: dict[str, Any] = dict(settings)
    for key, value in given.items():
        if key in _OF_THE_COMMAND:
            raise UserError(
                f"{key}={value}: the command reads it, a function does not; show=True prints what "
                "the command prints"
            )
        if asks_for_multirun(f"{key}={value}"):
            raise UserError(f"{key}={value}: a sweep, which only a command makes; call once a run")
    if caller_has_ray():
        import ray

        address, asked = ray.get_runtime_context().gcs_address, given.get("cluster.address")
        if asked not in (None, "auto", address):
            raise UserError(
                f"cluster.address={asked}: this process is connected to {address}; leave the key "
                "out, or call ray.shutdown() first"
            )
        if len(cluster_nodes("cpu")) > 1:  # they may lack the pictures, which a run looks at then
            given["cluster.address"] = address
        else:
            given.pop("cluster.address", None)
    return prepare_arguments([f"job={job}", *(f"{k}={_written(k, v)}" for k, v in given.items())])


def _written(key: str, value: Value) -> str:
    """A value as Hydra's grammar has it.

    Raises:
        UserError: it is of another kind.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | PurePath):
        return as_typed(key, os.fspath(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_written(key, one) for one in value)}]"
    if isinstance(value, Mapping) and key in all_fields():
        return f"{{{','.join(f'{name}:{_written(key, one)}' for name, one in value.items())}}}"
    raise UserError(
        f"{key}={value!r}: a value is a text, a path, a number, True, False, None or a list of "
        "these"
    )


def _folder(output_dir: str, is_given: bool) -> Path:
    """The run's folder; a default one, which holds the time, gets a number if there are several."""
    path_or_uri(output_dir, "output_dir")  # refuses a secret
    folder = first = working_folder(output_dir)
    number = 2
    while not is_given and folder.exists():
        folder = first.with_name(f"{first.name}_{number}")
        number += 1
    return folder
