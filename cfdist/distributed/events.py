"""What happened to devices, nodes, the reducer and pictures during a run, for its results."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from cfdist.files import LOG

What = Literal[
    "device_failed",
    "device_lost",
    "device_timeout",
    "device_set_aside",
    "device_added",
    "reducer_restarted",
    "picture_failed",
    "node_lost",
    "journal_cut",
]

# Notes on the screen; the file has all events.
_MOST_NOTES = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    """One entry of the results' `events`, whose keys are these attributes.

    Attributes:
        what: Its kind.
        text: What happened, one sentence without a full stop.
        device: The device's name; `None` where no device is concerned.
        host: The machine.
        chip: The accelerator's number on that machine, or its UUID; `None` on a CPU.
        time: ISO 8601, local time with its offset.
    """

    what: What
    text: str
    device: str | None = None
    host: str | None = None
    chip: str | None = None
    time: str = field(default_factory=lambda: datetime.now().astimezone().isoformat("T", "seconds"))


class Events(list[Event]):
    """The events of a run, in order; the driver keeps them."""

    def note(
        self,
        what: What,
        text: str,
        device: str | None = None,
        host: str | None = None,
        chip: str | None = None,
    ) -> Event:
        """Add an event that happens now, to the run's log as well; returns it."""
        log.warning("%s: %s", what, text)
        self.append(Event(what, text, device, host, chip))
        return self[-1]

    def take_back(self, event: Event, why: str) -> None:
        """Remove an event that no longer holds; the run's log says why."""
        log.warning("no longer %s: %s (%s)", event.what, event.text, why)
        self.remove(event)


def event_notes(events: Sequence[Event]) -> list[str]:
    """The events as notes for a reader; equal ones are one note, and the first few will do.

    The pictures that failed are shown as such.
    """
    texts = list(dict.fromkeys(one.text for one in events if one.what != "picture_failed"))
    more = [f"{len(texts) - _MOST_NOTES} more events: see events in results.json, and {LOG}"]
    return texts[:_MOST_NOTES] + (more if len(texts) > _MOST_NOTES else [])
