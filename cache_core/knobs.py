"""What a policy leaves open for a search to set: each knob is a field of the policy, by name.

A field of a policy within the policy is named by its path: "base.interval".
"""

from __future__ import annotations

from dataclasses import replace
from operator import attrgetter
from typing import NamedTuple, TypeVar

Policy = TypeVar("Policy")


class Steps(NamedTuple):
    """A set of steps, as a rising tuple that keeps its length and its first step."""

    name: str


class Mask(NamedTuple):
    """A set of any number of steps, as a rising tuple, or None for all. steps: those that make a difference."""

    name: str
    steps: tuple[int, ...]


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


def choice(name: str, options: tuple, now) -> Choice:
    """A choice among numbers, of which the one that is set now is one."""
    return Choice(name, tuple(sorted({*options, now})))


def within(field: str, knob: Knob) -> Knob:
    """The knob of a policy that is a field of another one, as that one's."""
    return knob._replace(name=f"{field}.{knob.name}")


def value(policy, name: str):
    """What a knob of this name is set to."""
    return attrgetter(name)(policy)


def turned(policy: Policy, name: str, to) -> Policy:
    """The policy with a knob of this name set to something else."""
    field, _, rest = name.partition(".")
    return replace(policy, **{field: turned(getattr(policy, field), rest, to) if rest else to})
