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
from cfdist.files import expanded
from cfdist.storage import is_uri

# Paths at which a run puts something.
_WRITTEN = ("output_dir", "resume", "infer.name")


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
    for overrides in chain.from_iterable(sweeper.overrides):
        try:
            composed = loader.load_sweep_config(sweeper.config, [*overrides])
            check_run(composed, overrides, typed)
        except (UserError, HydraException, OmegaConfBaseException) as error:
            reasons[cli.explain(error)[1]] = None
    for reason in reasons:
        cli.fail(ExitCode.BAD_INPUT, reason)
    if reasons:
        raise SystemExit(ExitCode.BAD_INPUT)


def check_run(composed: DictConfig, overrides: Sequence[str], typed: Collection[str]) -> None:
    """Check a run's settings, and that the files and folders which they name are there.

    Args:
        composed: The values of every key, and Hydra's own.
        overrides: The settings of this run, as Hydra writes them.
        typed: See `config.load`.

    Raises:
        UserError: a value is not allowed, or nothing is at a path.
    """
    with flag_override(composed, ["readonly", "struct"], [False, False]):
        composed.pop("hydra", None)
    values = config.flat(config.load(composed, frozenset(typed)).model_dump())
    for key in sorted(config.typed_keys(overrides)):
        value = values.get(key)
        if key.startswith("model.") and isinstance(value, str):
            value = value.replace("{batch}", str(values["model.batch"]))
        _check_path(key, value)


def _check_path(key: str, value: Any) -> None:
    field = all_fields().get(key)
    is_read = field is not None and allowed(field).startswith(f"{PATH} or")
    if not is_read or key in _WRITTEN or not isinstance(value, str):
        return
    if is_uri(value) or glob.has_magic(value):
        return
    path = expanded(value)  # it may go on inside of an archive
    if not path.exists() and not any(parent.is_file() for parent in path.parents):
        raise UserError(f"{key}={value}: no such file or folder; name one that is there")
