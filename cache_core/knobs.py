"""What a policy leaves open for a search to set: each knob is a field of the policy, named."""

from __future__ import annotations

from typing import NamedTuple


class Steps(NamedTuple):
    """A set of steps, as a rising tuple. fixed: how many stays as it is, and step 0 always belongs to it."""

    name: str
    fixed: bool = True


class Choice(NamedTuple):
    """One of some values, in an order in which neighbours are alike."""

    name: str
    options: tuple


class Numbers(NamedTuple):
    """A number per step, or a tuple of `width` of them; the outcome changes smoothly with each. `start`: of a step."""

    name: str
    start: tuple[float, ...] = (1.0, 0.0)


Knob = Steps | Choice | Numbers
