"""What a policy leaves open for a search to set: each knob is a field of the policy, by name."""

from __future__ import annotations

from typing import NamedTuple


class Steps(NamedTuple):
    """A set of steps, as a rising tuple that keeps its length and its first step."""

    name: str


class Mask(NamedTuple):
    """A set of any number of steps, as a rising tuple."""

    name: str


class Choice(NamedTuple):
    """One of some values, ordered so that neighbours are alike."""

    name: str
    options: tuple


class Numbers(NamedTuple):
    """A row of numbers per step; what comes out changes smoothly with each.

    start: the row of a step where the field is empty. entries: the (step, place in the row) that have any effect.
    """

    name: str
    start: tuple[float, ...]
    entries: tuple[tuple[int, int], ...]


Knob = Steps | Mask | Choice | Numbers
