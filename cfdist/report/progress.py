"""How a run goes on: one live line on a terminal, plain lines in a pipe, or events."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from cfdist.monitoring import stream, terminal
from cfdist.monitoring.metrics import Recorder, run_label
from cfdist.monitoring.monitor import Monitor, Snapshot
from cfdist.report.results import Phases
from cfdist.report.screen import console
from cfdist.storage import shown

if TYPE_CHECKING:
    from cfdist.backends.model import BackendModel
    from cfdist.distributed.rounds import Listener

# Drawing takes processor time from the reader threads: seldom.
_LIVE_SECONDS, _EVENT_SECONDS, _PLAIN_SECONDS = 0.25, 1.0, 5.0

_MOST_DEVICES = 8  # with figures of their own


class PictureProgress:
    """Shows a run over pictures while it is in the `with` block.

    Attributes:
        monitor: Takes what there is to show.
    """

    def __init__(self, total: int, output: str | Path) -> None:
        """Begin with `total` pictures, whose results go into the folder `output`."""
        self.monitor = Monitor(total, Recorder(run_label(shown(Path(output)))))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)
        self._shown = 0.0

    def __enter__(self) -> PictureProgress:
        """Begin to show it; a thread does."""
        self._shown = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last state on the screen."""
        self._ended.set()
        self._thread.join()
        self.monitor.end()
        state = self.monitor.snapshot()
        if stream.is_on():
            _emit(state)
        elif state.is_ready:
            terminal.say(plain_line(state))

    def listener(self, phases: Phases, model: BackendModel) -> Listener:
        """Shows how a model's evaluation goes on; ends the phase "devices" when they are ready."""
        from cfdist.distributed.rounds import Listener

        def on_ready(done: int, failed: int) -> None:
            phases.end("devices")
            self.monitor.start(done, failed)

        self.monitor.has_ap = not model.is_simulated
        return Listener(on_ready, self.monitor)

    def _show(self) -> None:
        is_live = terminal.is_live() and not terminal.settings.is_quiet
        period, published = _LIVE_SECONDS if is_live else _EVENT_SECONDS, 0.0
        while not self._ended.wait(period):
            now, state = time.monotonic(), self.monitor.snapshot()
            if now - published >= _EVENT_SECONDS:
                published = now
                self.monitor.publish()
            if stream.is_on():
                _emit(state)
            elif is_live:
                terminal.replace_line(live_line(state, console.width - 1))
            elif now - self._shown >= _PLAIN_SECONDS:
                self._shown = now
                terminal.say(plain_line(state))


def _emit(state: Snapshot) -> None:
    """Write the state as an event."""
    stream.emit(
        "progress" if state.is_ready else "loading",
        done=state.done,
        total=state.total,
        failed=state.failed,
        pictures_per_second=state.rate,
        eta_s=state.seconds_left,
        devices=state.devices,
        ap=state.ap,
    )


def plain_line(state: Snapshot) -> str:
    """The whole state on a line, however long."""
    if not state.is_ready:
        return _loading(state)
    return next(_lines(state))


def live_line(state: Snapshot, width: int) -> str:
    """The state on a line of at most `width` columns: the more there are, the more it says."""
    lines = _lines(state) if state.is_ready else iter([_loading(state)])
    line = ""
    for line in lines:
        if len(line) <= width:
            return line
    return line[: max(0, width)]


def _loading(state: Snapshot) -> str:
    return f"loading the model, {state.seconds:.0f} s"


def _lines(state: Snapshot) -> Iterator[str]:
    """What may be shown, the longest first."""
    count = f"{state.done}/{state.total}"
    failed = f" ({state.failed} failed)" if state.failed else ""
    left = state.seconds_left
    eta = "-" if left is None else str(timedelta(seconds=round(left)))
    rate = "-" if state.rate is None else f"{state.rate:.1f}"
    head = f"pictures {count}{failed} {rate}/s ETA {eta}"
    yield from (f"{head}, {text}" for text in _device_texts(state))
    yield head
    yield f"{count}{failed} {rate}/s ETA {eta}"
    yield f"{count} {rate}/s"
    yield count


def _device_texts(state: Snapshot) -> Iterator[str]:
    """What may be said of the devices, the longest first."""
    devices = state.devices
    shares = [one["busy"] for one in devices if one["busy"] is not None]
    if len(devices) == 1:
        yield from (f"busy {100 * share:.0f} %" for share in shares)
        return
    if 1 < len(devices) <= _MOST_DEVICES:
        yield ", ".join(
            f"{one['name']} {_figure(one['rate'], '.1f')}/s busy {_percent(one['busy'])}"
            for one in devices
        )
    if devices:
        rates = [one["rate"] for one in devices if one["rate"] is not None]
        ends = dict.fromkeys(f"{end(rates):.1f}" for end in (min, max) if rates)
        each = [f"{' to '.join(ends)}/s each"] if rates else []
        busy = [f"busy {_range(shares)}"] if shares else []
        yield f"{len(devices)} devices {', '.join(each + busy)}".rstrip()
        yield f"{len(devices)} devices {', '.join(busy)}".rstrip()


def _figure(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


def _range(shares: list[float]) -> str:
    low, high = (round(100 * end(shares)) for end in (min, max))
    return f"{low} %" if low == high else f"{low} to {high} %"
