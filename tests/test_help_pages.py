"""The help pages in Chinese say what the English ones do: the same headings, table rows and list items, the same words of code."""

import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).resolve().parent.parent / "web" / "docs").glob("*.md"))


def form(text: str) -> list[str]:
    """What every line is that is not empty: a heading of its level, a table row of so many cells, an item, or a paragraph."""
    return [kind(line) for line in text.splitlines() if line.strip()]


def kind(line: str) -> str:
    if line.startswith("|"):
        cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
        return f"row of {len(cells)}"
    found = re.match(r"#+ |\s*[*-] |\s*\d+\. |```|!\[", line)
    return re.sub(r"\d+", "1", found[0]) if found else "paragraph"


def codes(text: str) -> Counter[str]:
    """Names and values as they are written in the interface."""
    return Counter(re.findall(r"`[^`]+`", text))


def links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_in_chinese_follows_the_english_one(page):
    english, chinese = page.read_text(), (page.parent / page.stem / "zh.md").read_text()
    lines = [line for line in chinese.splitlines() if line.strip()]
    for own, other, line in zip_longest(form(english), form(chinese), lines):
        assert own == other, line
    assert codes(chinese) == codes(english)
    assert sorted(links(chinese)) == sorted(links(english))
    assert len(re.findall("[\u4e00-\u9fff]", chinese)) > len(english) / 8, "most of it is not translated"
