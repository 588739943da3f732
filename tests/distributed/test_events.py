"""Events of a run: what is kept, logged and shown of them."""

from __future__ import annotations

from datetime import datetime

from cfdist.distributed.events import Events, event_notes


def test_an_event_has_its_time_and_is_logged(caplog):
    events = Events()
    events.note("device_lost", "device:1 died", "device:1", "node", "3")
    (event,) = events
    assert datetime.fromisoformat(event.time).tzinfo is not None
    assert (event.what, event.device, event.host, event.chip) == (
        *("device_lost", "device:1", "node", "3"),
    )
    assert caplog.messages == ["device_lost: device:1 died"]


def test_notes_say_each_thing_once_and_not_too_many():
    events = Events()
    assert event_notes(events) == []
    for number in [0, 0, *range(11)]:
        events.note("device_failed", f"device:{number} failed")
    events.note("picture_failed", "e/1: killed the device 3 times")
    notes = event_notes(events)
    assert notes[:2] == ["device:0 failed", "device:1 failed"]
    assert len(notes) == 9
    assert notes[-1].startswith("3 more events")
