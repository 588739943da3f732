"""Charts as inline SVG; colours and line styles come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 460, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 44
_ROW_WIDTH = 600  # of a device's row

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Attributes:
        title: With its unit.
        ticks: Values with a line and a number, rising; the first and the last one are the ends.
        is_log: Equal ratios have equal lengths.
    """

    title: str
    ticks: Sequence[float]
    is_log: bool = False

    def place(self, value: float) -> float:
        """From 0 at the first tick to 1 at the last one."""
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.5


FRACTION = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


def ticks_to(highest: float) -> list[float]:
    """Round numbers from 0 to at least this one, four to eight steps."""
    if highest <= 0:
        return [0.0, 1.0]
    step = 10.0 ** math.floor(math.log10(highest / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if highest / (step * factor) <= 6)
    return [step * i for i in range(math.ceil(highest / step - 1e-9) + 1)]


def line_chart(
    name: str, lines: Mapping[str, Sequence[Point]], x: Axis, y: Axis, has_dots: bool = False
) -> Markup:
    """Lines over two axes, with a legend below; `name` says to all readers what is drawn."""
    parts = [_frame(x, y)]
    for number, points in enumerate(lines.values()):
        places = [(_across(x.place(a)), _up(y.place(b))) for a, b in points]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(Markup('<polyline class="line s{}" points="{}"/>').format(number % 6, path))
        if has_dots:
            dot = Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
            parts += [dot.format(number % 6, a, b) for a, b in places]
    return _figure(name, _svg(name, _WIDTH, _HEIGHT, parts), _legend([*lines], "line"))


def bar_chart(name: str, bars: Mapping[str, float], x_title: str, y: Axis) -> Markup:
    """One bar a name."""
    count = max(1, len(bars))
    parts = [_frame(Axis(x_title, ()), y)]
    room = (_WIDTH - _LEFT - _RIGHT) / count
    every = -(-count // 10)  # so that names do not overlap
    for i, (label, value) in enumerate(bars.items()):
        left, top = _LEFT + i * room, _up(y.place(value))
        bar = Markup('<rect class="bar s0" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
        parts.append(bar.format(left + room * 0.12, top, room * 0.76, _HEIGHT - _BOTTOM - top))
        if i % every == 0:
            parts.append(_text(left + room / 2, _HEIGHT - _BOTTOM + 14, label, "middle"))
    return _figure(name, _svg(name, _WIDTH, _HEIGHT, parts), Markup(""))


def device_rows(name: str, devices: Sequence[Mapping[str, Any]], seconds: float) -> Markup:
    """What each device did over the run: inferring, only reading, idle.

    Args:
        name: What is drawn, for all readers.
        devices: Entries of the results' `devices`, with their timelines.
        seconds: How long the run took.
    """
    seconds = max(seconds, 1e-3)
    rows = []
    for device in devices:
        line = device["timeline"]
        parts = [Markup('<rect class="idle" width="{}" height="24"/>').format(_ROW_WIDTH)]
        scale = _ROW_WIDTH / seconds
        for kind in ("inferring", "reading"):
            parts.append(_bins(line, kind, scale))
        title = f"{device['name']}: inferring in {100 * _mean(line, seconds):.0f} % of the run"
        rows.append(
            Markup('<tr><th scope="row">{}</th><td>{}</td></tr>').format(
                device["name"], _svg(title, _ROW_WIDTH, 24, parts, "row")
            )
        )
    ends = Markup('<tr><th scope="row">seconds</th><td class="ends"><span>0</span>{}</td></tr>')
    table = Markup('<table class="rows"><caption>{}</caption><tbody>{}</tbody></table>').format(
        name,
        Markup("").join([*rows, ends.format(Markup("<span>{:.1f}</span>").format(seconds))]),
    )
    legend = _legend(["inferring", "reading, and nothing to infer", "idle"], "kind")
    return Markup('<div class="timeline">{}{}</div>').format(table, legend)


def _mean(line: Mapping[str, Any], seconds: float) -> float:
    total: float = sum(line["inferring"]) * line["bin_seconds"] / seconds
    return min(1.0, total)


def _bins(line: Mapping[str, Any], kind: str, scale: float) -> Markup:
    """One path of the bars of a kind; reading stands on top of inferring."""
    pieces = []
    width = line["bin_seconds"] * scale
    for i, share in enumerate(line[kind]):
        if share <= 0:
            continue
        left = ((line["start"] or 0.0) + i * line["bin_seconds"]) * scale
        below = line["inferring"][i] if kind == "reading" else 0.0
        top, height = 24 * (1 - min(1.0, below + share)), 24 * min(share, 1 - below)
        pieces.append(f"M{left:.1f} {top:.1f}h{width:.2f}v{height:.1f}h-{width:.2f}z")
    return Markup('<path class="{}" d="{}"/>').format(kind, "".join(pieces))


def share_bar(name: str, parts: Mapping[str, float]) -> Markup:
    """One bar of parts that make a whole, with a legend."""
    total, left, shown = sum(parts.values()) or 1.0, 0.0, []
    for number, value in enumerate(parts.values()):
        width = _ROW_WIDTH * value / total
        rect = Markup('<rect class="bar s{}" x="{:.1f}" width="{:.1f}" height="24"/>')
        shown.append(rect.format(number % 6, left, width))
        left += width
    return _figure(name, _svg(name, _ROW_WIDTH, 24, shown, "row"), _legend([*parts], "bar"))


def _across(place: float) -> float:
    return _LEFT + place * (_WIDTH - _LEFT - _RIGHT)


def _up(place: float) -> float:
    return _HEIGHT - _BOTTOM - place * (_HEIGHT - _TOP - _BOTTOM)


def _number(value: float) -> str:
    return f"{value:.10g}" if value < 1e6 else f"{value:.0e}"


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    line = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return line.format(x, y, anchor, text)


def _frame(x: Axis, y: Axis) -> Markup:
    """Grid lines, numbers and titles of both axes."""
    line = Markup('<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for tick in y.ticks:
        at = _up(y.place(tick))
        parts += [line.format(_LEFT, at, right, at), _text(_LEFT - 6, at + 4, _number(tick), "end")]
    for tick in x.ticks:
        at = _across(x.place(tick))
        parts += [line.format(at, _TOP, at, bottom)]
        parts += [_text(at, bottom + 14, _number(tick), "middle")]
    parts.append(_text((_LEFT + right) / 2, _HEIGHT - 8, x.title, "middle"))
    title = Markup('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle">{}</text>')
    parts.append(title.format((_TOP + bottom) / 2, y.title))
    return Markup("").join(parts)


def _svg(name: str, width: int, height: int, parts: Sequence[Markup], kind: str = "") -> Markup:
    return Markup(
        '<svg role="img" aria-label="{}" class="{}" viewBox="0 0 {} {}"{}>{}</svg>'
    ).format(
        name,
        kind or "chart",
        width,
        height,
        Markup(' preserveAspectRatio="none"') if kind == "row" else "",
        Markup("").join(parts),
    )


def _figure(name: str, svg: Markup, legend: Markup) -> Markup:
    return Markup("<figure>{}<figcaption>{}</figcaption>{}</figure>").format(svg, name, legend)


def _legend(names: Sequence[str], kind: str) -> Markup:
    """The names with samples of their lines or areas."""
    samples = {
        "line": '<line class="line s{}" x1="0" y1="6" x2="28" y2="6"/>',
        "bar": '<rect class="bar s{}" width="28" height="12"/>',
        "kind": '<rect class="{}" width="28" height="12"/>',
    }
    classes = ("inferring", "reading", "idle")
    items = [
        Markup('<li><svg aria-hidden="true" viewBox="0 0 28 12">{}</svg> {}</li>').format(
            Markup(samples[kind]).format(classes[i] if kind == "kind" else i % 6), escape(name)
        )
        for i, name in enumerate(names)
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))
