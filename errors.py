"""What a user can be told: every error that bad input causes is a PriorCacheError."""

from __future__ import annotations

import math
import reprlib


class PriorCacheError(ValueError):
    """Something that this pack cannot use. Says what, where, what is allowed, and how to mend it."""


class SettingError(PriorCacheError):
    """A widget of a node, or a setting of a policy, that is none."""


def finite(node: str, **widgets: float) -> None:
    """Raise SettingError on a number that is none. The host's check of a widget's range lets nan pass."""
    for name, value in widgets.items():
        if not math.isfinite(value):
            raise SettingError(f"{node}: {name} is {value}; give a number")


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60

shown = _REPR.repr
"""A value out of a file as a message shows it: its repr, cut where it is long."""


def excerpt(said: object, most: int = 200) -> str:
    """What a file or another library said, in a line; without torch's advice to read the file in an unsafe way."""
    said = str(said).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0]
    return said if len(said) <= most else f"{said[:most]}..."
