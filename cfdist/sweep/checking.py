"""Every run of a sweep is checked before the first one begins."""

from __future__ import annotations

import contextlib
import glob
import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import chain
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.errors import HydraException
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from cfdist import config
from cfdist.command import cli
from cfdist.config.messages import allowed
from cfdist.config.schema import PATH, all_fields
from cfdist.errors import ExitCode, UserError
from cfdist.files import RESULTS, expanded
from cfdist.storage import is_recorded, is_uri, working_folder

# Paths at which a run puts something.
_WRITTEN = ("output_dir", "resume", "infer.name")
# Those that may be <backend>:<file>, which only the job can take apart.
_OF_BACKENDS = ("reference", "candidate")


@contextlib.contextmanager
def checked_ahead() -> Iterator[None]:
    """Have Hydra's plain sweeper check all runs of a sweep; itself, it only composes each.

    Another sweeper chooses each run by what the runs before it have found.
    """
    composes = BasicSweeper.validate_batch_is_legal
    BasicSweeper.validate_batch_is_legal = _check  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        BasicSweeper.validate_batch_is_legal = composes  # type: ignore[method-assign]


def _check(sweeper: BasicSweeper, _batch: Sequence[Sequence[str]]) -> None:
    """End the command with a line for each thing that is wrong with a run of the sweep."""
    assert sweeper.overrides is not None
    assert sweeper.hydra_context is not None
    assert sweeper.config is not None
    if sweeper.batch_index > 1:  # with the first batch all were looked at
        return
    loader, reasons = sweeper.hydra_context.config_loader, dict[str, None]()
    typed = config.typed_keys(sys.argv[1:])
    for number, overrides in enumerate(chain.from_iterable(sweeper.overrides)):
        try:
            composed = loader.load_sweep_config(sweeper.config, [*overrides])
            check_run(composed, overrides, typed, number)
        except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
            reasons[cli.explain(error)[1]] = None
    for reason in reasons:
        cli.fail(ExitCode.BAD_INPUT, reason)
    if reasons:
        raise SystemExit(ExitCode.BAD_INPUT)


def check_run(
    composed: DictConfig, overrides: Sequence[str], typed: Collection[str], number: int
) -> None:
    """Check a run's settings, and that the files and folders which they name are there.

    A run that an earlier command has finished reads them no more.

    Args:
        composed: The values of every key, and Hydra's own.
        overrides: The settings of this run, as Hydra writes them.
        typed: See `config.load`.
        number: The run's, which names its folder.

    Raises:
        UserError: a value is not allowed, or nothing is at a path.
        OSError: a path cannot be looked at.
    """
    with flag_override(composed, ["readonly", "struct"], [False, False]):
        composed.pop("hydra", None)
    checked = config.load(composed, frozenset(typed))
    results = working_folder(checked.output_dir) / str(number) / RESULTS
    values = config.flat(checked.model_dump())
    for key in sorted(config.typed_keys(overrides)):
        value = values.get(key)
        if key.startswith("model.") and isinstance(value, str):
            value = value.replace("{batch}", str(values["model.batch"]))
        if _is_missing(key, value) and not is_recorded(results):
            raise UserError(f"{key}={value}: no such file or folder; name one that is there")


def _is_missing(key: str, value: Any) -> bool:
    """Whether a setting names a file or folder that a run would read and that is not there."""
    field = all_fields().get(key)
    is_read = field is not None and allowed(field).startswith(f"{PATH} or")
    if not is_read or key in _WRITTEN or not isinstance(value, str):
        return False
    if is_uri(value) or glob.has_magic(value) or (key in _OF_BACKENDS and ":" in value):
        return False
    path = expanded(value)  # it may go on inside of an archive
    return not path.exists() and not any(parent.is_file() for parent in path.parents)
