"""From a page's parts to its file."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfdist.files import LOG, REPORT, write_text
from cfdist.report.screen import console
from cfdist.storage import shown

_TEMPLATES = Path(__file__).with_name("templates")

log = logging.getLogger(__name__)


@functools.cache
def _environment() -> Any:
    import jinja2  # takes a tenth of a second, and not every command ends with a page

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # names of pictures, models and settings come from outside
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **parts: Any) -> str:
    """The page that a template makes of its parts."""
    page: str = _environment().get_template(template).render(**parts)
    return page


def write_report(folder: Path, make: Callable[[], str]) -> None:
    """Write `report.html` and say where it is; a report that fails fails no run.

    Args:
        folder: That of the run, comparison or sweep, whose results are written.
        make: Makes the page.
    """
    path = folder / REPORT
    try:
        write_text(path, make())
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        log.exception("no %s", REPORT)
        console.print(f"note: no {REPORT} ({reason}); the results are whole, see {LOG}")
    else:
        console.print(f"report: {shown(path)}")
