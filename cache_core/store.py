"""FeatureStore: the past outputs of one sampling run, per site and stream."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from .sites import Feature, Lane, Site, Step, Streams

History = deque[Feature]


class FeatureStore:
    """Keeps the last `history` outputs of every (site, streams).

    Conds may be batched in one call and split in the next. Each lane of a site therefore has exactly one owner: asking
    for another grouping splits the old groups by rows and joins the new one, so nothing stale is left behind.
    """

    def __init__(self, history: int):
        self.history = history
        self._groups: dict[tuple[str, Streams], History] = {}
        self._owner: dict[tuple[str, Lane], Streams] = {}
        self._used: dict[tuple[str, Streams], int] = {}

    def get(self, site: Site, streams: Streams) -> list[Feature]:
        """Past outputs, newest first; empty when any lane is unknown or the lanes were last seen at different steps."""
        key = (site.name, streams)
        if key not in self._groups:
            self._regroup(site.name, streams)
        return list(self._groups.get(key, ()))

    def put(self, site: Site, streams: Streams, value: Tensor, step: Step, computed: bool) -> None:
        """Push an output. The tensor belongs to the store from here on; nobody may write to it."""
        key = (site.name, streams)
        if key not in self._groups and not self._regroup(site.name, streams):
            self._forget(site.name, streams)
            self._groups[key] = deque(maxlen=self.history)
            for lane in streams:
                self._owner[site.name, lane] = streams
        self._groups[key].appendleft(Feature(value, step, computed))
        self._used[key] = step.index

    def touch(self, site: Site, streams: Streams, step: Step) -> None:
        """Mark an entry as still in use."""
        self._used[site.name, streams] = step.index

    def expire(self, before: int) -> None:
        """Drop what was last used at an evaluation earlier than `before`."""
        for key in [k for k, index in self._used.items() if index < before]:
            self._drop(*key)

    def clear(self) -> None:
        self._groups.clear()
        self._owner.clear()
        self._used.clear()

    @property
    def nbytes(self) -> int:
        seen = {f.value.untyped_storage().data_ptr(): f.value for h in self._groups.values() for f in h}
        return sum(v.untyped_storage().nbytes() for v in seen.values())

    def _regroup(self, site: str, streams: Streams) -> bool:
        """Make `streams` the owner of its lanes, carrying their history along where all lanes have the same one."""
        owners = {self._owner.get((site, lane)) for lane in streams}
        if None in owners:
            return False
        for owner in owners:
            self._split(site, owner)
        parts = [self._groups[site, (lane,)] for lane in streams]
        if len({tuple((f.step.index, f.computed) for f in part) for part in parts}) > 1:
            return False
        if len({f.value.shape for part in parts for f in part}) > 1:
            return False
        if len(streams) == 1:
            return True
        used = min(self._used[site, (lane,)] for lane in streams)
        joined = deque(
            (
                Feature(torch.cat([f.value for f in moment]), moment[0].step, moment[0].computed)
                for moment in zip(*parts, strict=True)
            ),
            maxlen=self.history,
        )
        self._forget(site, streams)
        self._groups[site, streams], self._used[site, streams] = joined, used
        for lane in streams:
            self._owner[site, lane] = streams
        return True

    def _split(self, site: str, streams: Streams) -> None:
        """Turn one group into single lanes; the slices are views."""
        if len(streams) == 1:
            return
        history, used = self._groups.pop((site, streams)), self._used.pop((site, streams))
        rows = [f.value.chunk(len(streams)) for f in history]
        for position, lane in enumerate(streams):
            own = (Feature(r[position], f.step, f.computed) for r, f in zip(rows, history, strict=True))
            self._groups[site, (lane,)] = deque(own, maxlen=self.history)
            self._used[site, (lane,)] = used
            self._owner[site, lane] = (lane,)

    def _forget(self, site: str, streams: Streams) -> None:
        for lane in streams:
            owner = self._owner.get((site, lane))
            if owner is not None:
                self._split(site, owner)
                self._drop(site, (lane,))

    def _drop(self, site: str, streams: Streams) -> None:
        self._groups.pop((site, streams), None)
        self._used.pop((site, streams), None)
        for lane in streams:
            self._owner.pop((site, lane), None)
