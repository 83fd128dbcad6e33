"""Policies as JSON: what a plan keeps in a prior, and what an image says of how it was made."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import lru_cache
from inspect import isabstract
from typing import get_args, get_origin, get_type_hints

from ..cache_core import policies
from ..cache_core.policies import CachePolicy
from ..errors import SettingError, shown

DEEPEST = 4
"""Policies within policies; the published ones need two."""


def record(policy: CachePolicy) -> dict:
    """{"policy": its class, "settings": its fields as JSON types}. Raises SettingError when it needs more than that."""
    return {"policy": type(policy).__name__, "settings": settings(policy)}


def recorded(policy: CachePolicy) -> dict | None:
    """Its record, or None where it needs more than that."""
    try:
        return record(policy)
    except SettingError:
        return None


def settings(policy: CachePolicy) -> dict:
    """The fields that make a policy, as JSON types. Raises SettingError when some cannot be told so."""
    missing = [
        f.name
        for f in fields(policy)
        if f.init and not f.repr and f.default is MISSING and f.default_factory is MISSING
    ]
    if missing:
        raise SettingError(f"{type(policy).__name__} is made of tables ({', '.join(missing)}) that no record holds")
    return {name: _plain(getattr(policy, name)) for name in _hints(type(policy))}


def restored(name: str, settings: dict, depth: int = 1) -> CachePolicy:
    """The policy of a record. Raises SettingError where this version has none such, or none with such settings."""
    kind = getattr(policies, name, None) if name in policies.__all__ else None
    if kind is None or not issubclass(kind, CachePolicy) or isabstract(kind) or depth > DEEPEST:
        raise SettingError(f"{shown(name)} is no policy of this version of PriorCache; update it")
    hints = _hints(kind)
    found = {key: value for key, value in {**kind.before, **settings}.items() if key in hints}
    for key, value in found.items():
        if not fits(value, hints[key]):
            raise SettingError(f"{key} is {shown(value)}, which {name} cannot use")
    made = {
        key: restored(value["policy"], value["settings"], depth + 1) if hints[key] is CachePolicy else _frozen(value)
        for key, value in found.items()
    }
    try:
        return kind(**made)
    except TypeError as error:  # it needs more than a record holds
        raise SettingError(f"{name} cannot be made of this record ({error})") from error


@lru_cache
def _hints(kind: type[CachePolicy]) -> dict[str, type]:
    """Name -> type of the fields that make a policy of this class."""
    hints = get_type_hints(kind)
    return {f.name: hints[f.name] for f in fields(kind) if f.init and f.repr}


def fits(value, hint: type) -> bool:
    """Whether a JSON value can be a field of this type: a number in reach of float32, or lists for tuples of such."""
    if hint in (int, float):
        return type(value) in (int, hint) and -3e38 < value < 3e38
    if hint is CachePolicy:
        return type(value) is dict and type(value.get("policy")) is str and type(value.get("settings")) is dict
    if get_origin(hint) is not tuple:
        return hint in (str, bool) and type(value) is hint
    inner, *rest = get_args(hint)
    hints = [inner] * len(value) if rest == [...] and type(value) is list else [inner, *rest]
    return type(value) is list and len(value) == len(hints) and all(map(fits, value, hints))


def _plain(value):
    if isinstance(value, CachePolicy):
        return record(value)
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _frozen(value):
    return tuple(map(_frozen, value)) if isinstance(value, list) else value
