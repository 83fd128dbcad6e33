import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from priorcache.cache_core.codecs import CODECS
from priorcache.cache_core.sites import Lane, Site, Step
from priorcache.cache_core.store import FeatureStore

SITE = Site("blocks.0.attn", 0, 1)
A, B, C = (Lane(0, i, name) for i, name in enumerate("abc"))


def step(index: int) -> Step:
    return Step(index, 10, index / 10, 10.0 - index)


def values(features) -> list[list[float]]:
    return [f.value.flatten().tolist() for f in features]


def test_returns_the_newest_first_and_only_as_many_as_it_keeps():
    store = FeatureStore(history=2)
    for i in range(3):
        store.put(SITE, (A,), torch.tensor([[float(i)]]), step(i), computed=True)
    assert values(store.get(SITE, (A,))) == [[2.0], [1.0]]


def test_takes_in_nothing_that_would_come_to_more_than_its_limit():
    other = Site("blocks.0.mlp", 0, 1)
    store = FeatureStore(history=2, limit=64)  # bytes: two outputs of two rows of four floats
    store.put(SITE, (A, B), torch.ones(2, 4), step(0), True)
    store.put(other, (A, B), torch.ones(2, 4), step(0), True)
    assert store.has(SITE, (A, B))
    assert not store.has(other, (A, B))
    for i in (1, 2):
        store.put(SITE, (A, B), torch.ones(2, 4), step(i), True)
        assert store.nbytes == 64
    store.put(SITE, (A,), torch.ones(1, 4), step(3), True)  # rows that part are no more than before
    store.put(SITE, (B,), torch.ones(1, 4), step(3), True)
    store.put(SITE, (C,), torch.ones(1, 4), step(3), True)
    assert (store.has(SITE, (A,)), store.has(SITE, (B,)), store.has(SITE, (C,))) == (True, True, False)


def test_another_lane_or_site_is_a_miss():
    store = FeatureStore(1)
    store.put(SITE, (A,), torch.ones(1, 1), step(0), True)
    assert store.get(SITE, (B,)) == []
    assert store.get(SITE, (A, B)) == []
    assert store.get(Site("blocks.0.mlp", 0, 1), (A,)) == []


def test_a_batch_that_splits_and_joins_in_another_order_keeps_every_row_with_its_lane():
    store = FeatureStore(2)
    store.put(SITE, (A, B), torch.tensor([[1.0], [2.0]]), step(0), True)
    store.put(SITE, (A, B), torch.tensor([[3.0], [4.0]]), step(1), True)
    assert values(store.get(SITE, (B,))) == [[4.0], [2.0]]
    assert values(store.get(SITE, (A,))) == [[3.0], [1.0]]
    assert values(store.get(SITE, (B, A))) == [[4.0, 3.0], [2.0, 1.0]]


def test_what_was_batched_before_a_split_is_never_served_again():
    store = FeatureStore(1)
    store.put(SITE, (A, B), torch.tensor([[1.0], [2.0]]), step(0), True)
    store.put(SITE, (A,), torch.tensor([[10.0]]), step(1), True)
    store.put(SITE, (B,), torch.tensor([[20.0]]), step(1), True)
    assert values(store.get(SITE, (A, B))) == [[10.0, 20.0]]


def test_lanes_last_seen_at_different_steps_do_not_join():
    store = FeatureStore(1)
    store.put(SITE, (A,), torch.ones(1, 1), step(0), True)
    store.put(SITE, (B,), torch.ones(1, 1), step(1), True)
    assert store.get(SITE, (A, B)) == []
    store.put(SITE, (A, B), torch.tensor([[5.0], [6.0]]), step(2), True)
    assert values(store.get(SITE, (A, B))) == [[5.0, 6.0]]
    assert values(store.get(SITE, (A,))) == [[5.0]]


def test_an_output_with_other_tokens_has_no_past():
    store = FeatureStore(history=2)
    for i, tokens in enumerate((3, 3, 2, 2)):
        store.put(SITE, (A, B), torch.full((2, tokens, 4), float(i)), step(i), computed=True)
        kept = store.get(SITE, (A, B))
        assert {f.value.shape[1] for f in kept} == {tokens}
        assert len(kept) == 1 + i % 2


def test_counts_every_byte_once():
    store = FeatureStore(2)
    shared = torch.zeros(4, 8)
    store.put(SITE, (A,), shared, step(0), True)
    store.put(SITE, (A,), shared, step(1), False)
    store.put(Site("blocks.0.mlp", 0, 1), (A,), torch.zeros(4, 8), step(1), True)
    assert store.nbytes == 2 * 4 * 8 * 4


def test_drops_what_other_lanes_hold_also_where_they_hold_it_together():
    store, other = FeatureStore(1), Site("blocks.0.mlp", 0, 1)
    store.put(SITE, (A, B), torch.tensor([[1.0], [2.0]]), step(0), True)
    store.put(other, (B,), torch.ones(1, 1), step(0), True)
    store.only({A})
    assert store.get(SITE, (A,))[0].value.item() == 1
    assert store.get(SITE, (B,)) == store.get(other, (B,)) == []
    store.only({A})
    assert store.nbytes == 4  # nothing of the half that is gone


def test_what_a_split_replaces_is_held_no_longer():
    """A limit counts what is there, not what half of it is a part of."""
    store, rows = FeatureStore(1, limit=64), torch.zeros(2, 8)
    for name in ("blocks.0.attn", "blocks.0.mlp"):
        store.put(Site(name, 0, 1), (A, B), rows[:, :4].clone(), step(0), True)
    assert store.nbytes == 64
    for lane in (A, B):
        for name in ("blocks.0.attn", "blocks.0.mlp"):
            store.put(Site(name, 0, 1), (lane,), torch.ones(1, 4), step(1), True)
            assert store.nbytes == 64


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_asking_whether_something_is_there_agrees_with_getting_it(codec):
    store = FeatureStore(1, codec)
    assert not store.has(SITE, (A,))
    store.put(SITE, (A, B), torch.randn(2, 3, 64), step(0), True)
    assert all(store.has(SITE, streams) for streams in [(A, B), (B,), (B, A)])
    assert not store.has(SITE, (A, C))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_holds_as_many_bytes_as_the_codec_tells_also_after_lanes_split(codec):
    store = FeatureStore(2, codec)
    for i in range(3):
        store.put(SITE, (A, B), torch.randn(2, 3, 64).half(), step(i), True)
    told = 2 * codec.nbytes((2, 3, 64), torch.float16)
    assert store.nbytes == told
    store.get(SITE, (B,))
    assert store.nbytes == told
    store.get(SITE, (B, A))
    assert store.nbytes == told
    store.clear()
    assert store.nbytes == 0


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    evaluations=st.lists(
        st.lists(
            st.permutations([A, B, C]).flatmap(lambda p: st.integers(1, 3).map(lambda n: tuple(p[:n]))), max_size=3
        ),
        max_size=8,
    )
)
def test_any_sequence_of_groupings_agrees_with_one_plain_list_per_lane(codec, evaluations):
    """The reference: a dict of lists. Whatever the store returns must be those rows; whatever it cannot join, it misses."""
    store, plain = FeatureStore(2, codec), {A: [], B: [], C: []}
    count = 0.0
    for index, calls in enumerate(evaluations):
        for streams in calls:
            found = store.get(SITE, streams)
            for depth, feature in enumerate(found):
                rows = [plain[lane][depth][1] for lane in streams]
                assert feature.value.flatten().tolist() == pytest.approx(rows, rel=1 / 254)
                assert {plain[lane][depth][0] for lane in streams} == {feature.step.index}
            if len(streams) == 1 and plain[streams[0]]:
                assert found, "a lane on its own is always known"
            rows = [count + i for i in range(len(streams))]
            count += len(streams)
            known = [[e[0] for e in plain[lane]] for lane in streams]
            for lane, row in zip(streams, rows, strict=True):
                kept = plain[lane] if all(k == known[0] for k in known) else []
                plain[lane] = [(index, row), *kept][:2]
            store.put(SITE, streams, torch.tensor(rows)[:, None], step(index), True)


def test_what_is_known_of_tokens_goes_with_the_rows():
    store = FeatureStore(1)
    store.put(SITE, (A, B), torch.zeros(2, 3, 4), step(0), True, marks=torch.arange(6.0).view(2, 3))
    assert store.get(SITE, (A, B))[0].age is None
    for i, where in enumerate([[[0], [2]], [[0], [1]]], start=1):
        store.put(SITE, (A, B), torch.zeros(2, 3, 4), step(i), False, torch.tensor(where))
    assert store.get(SITE, (A, B))[0].age.tolist() == [[0, 2, 2], [2, 0, 1]]
    (b,) = store.get(SITE, (B,))
    assert (b.age.tolist(), b.marks.tolist()) == ([[2, 0, 1]], [[3, 4, 5]])
    (swapped,) = store.get(SITE, (B, A))
    assert (swapped.age.tolist(), swapped.marks.tolist()) == ([[2, 0, 1], [0, 2, 2]], [[3, 4, 5], [0, 1, 2]])
    store.put(SITE, (B, A), torch.zeros(2, 3, 4), step(3), False)  # a reuse that is kept makes nothing younger
    assert store.get(SITE, (B, A))[0].age.tolist() == [[2, 0, 1], [0, 2, 2]]
    store.put(SITE, (B, A), torch.zeros(2, 3, 4), step(4), True)
    assert store.get(SITE, (B, A))[0][3:] == (None, None)


def test_tokens_that_are_all_passed_by_become_older():
    store = FeatureStore(2)
    store.put(SITE, (A, B), torch.zeros(2, 3, 4), step(0), True)
    store.passed_by(SITE, (A, B))
    (only,) = store.get(SITE, (A, B))
    assert only.age.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert (only.step, only.computed) == (step(0), True)
    store.put(SITE, (A, B), torch.zeros(2, 3, 4), step(2), False, torch.tensor([[0], [2]]))
    store.passed_by(SITE, (A, B))
    assert store.get(SITE, (A, B))[0].age.tolist() == [[1, 3, 3], [3, 3, 1]]
    with_ages = store.nbytes
    store.put(SITE, (A, B), torch.zeros(2, 3, 4), step(3), True)
    assert store.nbytes < with_ages
    store.clear()
    store.passed_by(SITE, (A, B))
    assert store.nbytes == 0
