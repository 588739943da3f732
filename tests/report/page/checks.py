"""What every page keeps to, whoever made it: it is read by programs as well as by people."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

VOID = {"meta", "br", "rect", "line", "polyline", "path", "circle", "image", "use"}
STYLE = Path(__file__).parents[3] / "cfdist/report/page/templates/style.css"


class Page(HTMLParser):
    """A page's elements: (name, attributes, text inside)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[int] = []
        self.feed(html)
        self.close()
        assert self._open == [], [self.elements[i][0] for i in self._open]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.elements[self._open[-1]][0] == tag, (tag, self.elements[self._open[-1]])
        self._open.pop()

    def handle_data(self, data):
        for i in self._open:
            self.elements[i][2].append(data)

    def all(self, *tags: str) -> list[tuple[dict[str, str | None], str]]:
        """The attributes and the text of all elements with one of these names."""
        return [
            (attributes, "".join(text).strip())
            for tag, attributes, text in self.elements
            if tag in tags
        ]

    def table(self, caption: str) -> list[list[str]]:
        """The cells of the table whose caption begins so, row by row, titles first."""
        rows: list[list[str]] = []
        is_in = False
        for tag, _, text in self.elements:
            if tag == "caption":
                is_in = "".join(text).startswith(caption)
            elif is_in and tag == "tr":
                rows.append([])
            elif is_in and tag in ("th", "td") and rows:
                rows[-1].append("".join(text).strip())
            if tag == "caption" and is_in:
                rows = []
        return rows


def checked(html: str) -> Page:
    """The page, if it is whole, alone, and says to all readers what it shows."""
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert len(html.encode(errors="backslashreplace")) < 5_000_000
    ((root, _),) = page.all("html")
    assert root["lang"] == "en"
    assert all(text for _, text in page.all("title", "h1", "h2", "h3", "caption", "summary"))
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels)), levels
    assert len(page.all("main")) == 1
    ids = Counter(attributes["id"] for _, attributes, _ in page.elements if "id" in attributes)
    assert ids and max(ids.values()) == 1, ids.most_common(3)
    for attributes, _ in page.all("a", "use"):
        target = attributes["href"] or ""
        assert not re.match(r"[a-z]+:|//", target), target
        assert not target.startswith("#") or target[1:] in ids, target
    assert page.elements[[tag for tag, _, _ in page.elements].index("a")][1]["class"] == "skip"
    assert all(one.get("scope") in ("row", "col") for one, _ in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    for attributes, _ in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or attributes["aria-label"], attributes
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "action", "srcset"):
            link = attributes.get(name) or ""
            assert tag in ("a", "use") or link.startswith("data:image/jpeg") or not link, link
    assert "@import" not in html and "url(" not in html
    return page


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet: light, dark and print."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(), re.S)
    colours = [dict(re.findall(r"--([\w-]+): *#(\w+)", block)) for block in blocks]
    return dict(zip(("light", "dark", "print"), colours, strict=True))


def contrast(one: str, other: str) -> float:
    """The ratio of two colours' brightness, as WCAG 2 counts it: 1 to 21."""
    brightness = []
    for colour in (one, other):
        full = colour if len(colour) == 6 else "".join(2 * digit for digit in colour)
        parts = [int(full[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        brightness.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(brightness) / min(brightness)
