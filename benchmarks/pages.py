"""Pages that a benchmark writes, and people write on."""

from __future__ import annotations

from pathlib import Path

REMARKS = "<!-- What follows is written by hand and stays. -->"


def remarked(page: Path, text: str) -> str:
    """A page with this text, and below it what was written by hand below the one before."""
    remarks = page.read_text().partition(REMARKS)[2] if page.exists() else "\n"
    return f"{text}\n\n{REMARKS}{remarks}"
