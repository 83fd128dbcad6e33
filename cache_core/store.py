"""FeatureStore: the past outputs of one sampling run, per site and stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import NamedTuple

import torch
from torch import Tensor

from .codecs import CODECS, Codec, Kept
from .sites import Feature, Lane, Site, Step, Streams


class Past(NamedTuple):
    kept: Kept
    step: Step
    computed: bool
    age: Tensor | None = None
    marks: Tensor | None = None


class FeatureStore:
    """Keeps the last `history` outputs of every (site, streams), in the form that the codec gives them.

    limit: bytes; what would come to more, were every history full, is not taken in.

    Conds may be batched in one call and split in the next. Each lane of a site therefore has exactly one owner: asking
    for another grouping splits the old groups by rows and joins the new one, so nothing stale is left behind.
    """

    def __init__(self, history: int, codec: Codec = CODECS["device"], limit: int | None = None):
        self.history, self.codec, self.limit = history, codec.for_run(), limit
        self._groups: dict[Streams, dict[str, deque[Past]]] = {}  # newest first
        self._owner: dict[tuple[str, Lane], Streams] = {}
        self._nbytes: int | None = 0  # None: to be counted anew

    def has(self, site: Site, streams: Streams) -> bool:
        """Whether `get` would find something."""
        return self._find(site.name, streams) is not None

    def get(self, site: Site, streams: Streams) -> list[Feature]:
        """Past outputs, newest first; empty when any lane is unknown or the lanes were last seen at different steps."""
        group = self._find(site.name, streams)
        return [Feature(self.codec.decode(p.kept), *p[1:]) for p in group or ()]

    def put(
        self,
        site: Site,
        streams: Streams,
        value: Tensor,
        step: Step,
        computed: bool,
        where: Tensor | None = None,
        marks: Tensor | None = None,
    ) -> None:
        """Push an output. The tensor belongs to the store from here on; nobody may write to it.

        where: indices (B, K) of the only tokens that are new; the others are one older than in the output before.
        """
        group = self._find(site.name, streams)
        past = Past(self.codec.encode(value), step, computed, None, marks)
        if group and group[0].kept.parts[0].shape != past.kept.parts[0].shape:
            group = None  # tokens came or went: they have no past
        if group and not computed:
            age = group[0].age if where is None else _older(group[0]).scatter(1, where, 0)
            past = past._replace(age=age, marks=group[0].marks)
        if group is None:
            for lane in streams:
                self._forget(site.name, lane)
            if self.limit is not None and self._reserved(past) > self.limit:
                return
            group = self._own(site.name, streams, deque(maxlen=self.history))
        group.appendleft(past)
        self._nbytes = None

    def passed_by(self, site: Site, streams: Streams) -> None:
        """All tokens of the newest output, if there still is one, are one older."""
        if group := self._find(site.name, streams):
            group[0] = group[0]._replace(age=_older(group[0]))
            self._nbytes = None

    def only(self, lanes: Container[Lane]) -> None:
        """Drop what any other lanes hold."""
        for site, lane in [held for held in self._owner if held[1] not in lanes]:
            self._forget(site, lane)

    def without(self, lanes: Container[Lane]) -> None:
        """Drop what these lanes hold."""
        for site, lane in [held for held in self._owner if held[1] in lanes]:
            self._forget(site, lane)

    def clear(self) -> None:
        self._groups.clear()
        self._owner.clear()
        self.codec.clear()
        self._nbytes = 0

    @property
    def nbytes(self) -> int:
        """What is held, in whatever memory; a storage that several features share counts once."""
        if self._nbytes is None:
            pasts = (p for groups in self._groups.values() for g in groups.values() for p in g)
            storages = (t.untyped_storage() for p in pasts for t in (*p.kept.parts, *_of_tokens(p)))
            self._nbytes = sum({s.data_ptr(): s.nbytes() for s in storages}.values())
        return self._nbytes

    def _reserved(self, more: Past) -> int:
        """What everything held, and one more, will take when every history is full."""
        newest = [g[0] for groups in self._groups.values() for g in groups.values()]
        return self.history * sum(t.nbytes for p in (*newest, more) for t in (*p.kept.parts, *_of_tokens(p)))

    def _find(self, site: str, streams: Streams) -> deque[Past] | None:
        return self._groups.get(streams, {}).get(site) or self._regroup(site, streams)

    def _regroup(self, site: str, streams: Streams) -> deque[Past] | None:
        """Make `streams` the owner of its lanes, carrying their history along where all lanes have the same one."""
        owners = {self._owner.get((site, lane)) for lane in streams}
        if None in owners:
            return None
        for owner in owners:
            self._split(site, owner)
        parts = [self._groups[(lane,)][site] for lane in streams]
        if len({tuple(map(_moment, part)) for part in parts}) > 1:
            return None
        if len({p.kept.parts[0].shape for part in parts for p in part}) > 1:
            return None
        if len(streams) == 1:
            return parts[0]
        for device in {part[0].kept.device for part in parts}:
            self.codec.wait(device)
        history = [_joined(moment) for moment in zip(*parts, strict=True)]
        for lane in streams:
            self._forget(site, lane)
        return self._own(site, streams, deque(history, maxlen=self.history))

    def _split(self, site: str, streams: Streams) -> None:
        """Turn one group into single lanes."""
        if len(streams) == 1:
            return
        group = self._take(site, streams)
        for device in {past.kept.device for past in group}:
            self.codec.wait(device)
        rows = [_split(past, len(streams)) for past in group]
        for position, lane in enumerate(streams):
            self._own(site, (lane,), deque((r[position] for r in rows), maxlen=self.history))

    def _forget(self, site: str, lane: Lane) -> None:
        owner = self._owner.get((site, lane))
        if owner is not None:
            self._split(site, owner)
            self._take(site, (lane,))

    def _own(self, site: str, streams: Streams, group: deque[Past]) -> deque[Past]:
        self._groups.setdefault(streams, {})[site] = group
        self._nbytes = None
        for lane in streams:
            self._owner[site, lane] = streams
        return group

    def _take(self, site: str, streams: Streams) -> deque[Past]:
        groups = self._groups[streams]
        group = groups.pop(site)
        self._nbytes = None
        if not groups:
            del self._groups[streams]
        for lane in streams:
            del self._owner[site, lane]
        return group


def _moment(past: Past) -> tuple:
    """What entries must have in common to be joined."""
    return past.step.index, past.computed, past.age is None, past.marks is None


def _older(past: Past) -> Tensor:
    """(B, N): the age of its tokens, where each is passed by once more."""
    if past.age is not None:
        return past.age + 1
    return torch.ones(past.kept.parts[0].shape[:2], dtype=torch.int16, device=past.kept.device)


def _of_tokens(past: Past) -> list[Tensor]:
    return [t for t in (past.age, past.marks) if t is not None]


def _split(past: Past, count: int) -> list[Past]:
    each = zip(*(_rows(part, count) for part in past.kept.parts), strict=True)
    ages, marks = ([None] * count if t is None else _rows(t, count) for t in (past.age, past.marks))
    return [
        past._replace(kept=past.kept._replace(parts=parts), age=age, marks=mark)
        for parts, age, mark in zip(each, ages, marks, strict=True)
    ]


def _rows(part: Tensor, count: int) -> list[Tensor]:
    """Copies: of two views, one that is dropped would be held by the other."""
    return [rows.clone() for rows in part.chunk(count)]


def _joined(moment: tuple[Past, ...]) -> Past:
    """The rows of several lanes at one step, in one tensor."""
    first = moment[0]
    parts = tuple(torch.cat(part) for part in zip(*(p.kept.parts for p in moment), strict=True))
    age = None if first.age is None else torch.cat([p.age for p in moment])
    marks = None if first.marks is None else torch.cat([p.marks for p in moment])
    return first._replace(kept=first.kept._replace(parts=parts), age=age, marks=marks)
