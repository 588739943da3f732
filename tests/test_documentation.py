"""The pages fit together: links lead somewhere, and both READMEs say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
READMES = [PROJECT / name for name in ("README.md", "README.zh-CN.md")]
PAGES = [*READMES, PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"docs/([\w.-]+\.md)", READMES[0].read_text()))
    assert {page.name for page in (PROJECT / "docs").glob("*.md")} == linked


def outline(page: Path) -> dict[str, list[str]]:
    """What has to be the same in each language."""
    text = page.read_text()
    prose = re.sub(r"\[(中文|English)\].*", "", text)
    return {
        "sections": re.findall(r"^#+", text, re.MULTILINE),
        "blocks": re.findall(r"^ {4}.*$", text, re.MULTILINE),
        "code": sorted(re.findall(r"`[^`]+`", prose)),
        "figures": sorted(re.findall(r"\d+(?:\.\d+)?", prose)),
        "links": sorted(re.findall(r"\]\(([^)]+)\)", prose)),
        "rows": ["" for line in text.split("\n") if line.startswith("| ")],
    }


def test_both_readmes_have_the_same_sections_commands_figures_and_links():
    english, chinese = map(outline, READMES)
    for what, found in english.items():
        assert found == chinese[what], what
    # Most of the second one is in Chinese.
    text = re.sub(r"^ {4}.*$|\(.*?\)|`.*?`", "", READMES[1].read_text(), flags=re.MULTILINE)
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 400
