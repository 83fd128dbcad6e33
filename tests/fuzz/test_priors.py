"""Prior files: a prior that everything which reads one can work with, or PriorError."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict

import pytest
import torch
from fuzzing import DEEP, KINDS, NUMBERS, anything, asked, cases, edited, filled, put, scalars, spliced, tried
from hypothesis import given
from hypothesis import strategies as st
from priorcache.cache_core import policies
from priorcache.cache_core.policies import EOC, FORA
from priorcache.cache_core.sites import Action, Schedule, Site, Step
from priorcache.errors import PriorCacheError
from priorcache.priors.inflections import inflections
from priorcache.priors.plan import Plan, chosen, step_errors_of
from priorcache.priors.prior import Prior, PriorError, Subject
from priorcache.priors.router import policy
from priorcache.priors.trend import Trend, judged
from safetensors.torch import save

T, SITES = 4, ("blocks.0.attn", "blocks.0.mlp")
SIGMAS = (9.0, 4.0, 1.0, 0.2, 0.0)
SUBJECT = Subject("DiT", "0123456789abcdef", "EPS", "euler", "normal", steps=T, cfg=4.0)
FORECAST = {
    "speedup": 2.0, "computed": [0, 2], "coordinate": "log snr", "order": 1, "gains": [[1.0, 0.5]] * T,
    "sigmas": list(SIGMAS), "level": "model",
}  # fmt: skip
PLAN = {
    "policy": "Forecast", "settings": FORECAST, "steps": T, "evaluations": 2, "error": 0.1, "unplanned": 0.2, "pictures": 4,
}  # fmt: skip
FORA_PLAN = PLAN | {"policy": "FORA", "settings": {"interval": 2, "phase": "aligned", "level": "model"}, "pictures": 2}
TOCA_PLAN = PLAN | {"policy": "DuCa", "settings": {"preset": "dit", "ratio": 0.5, "steps": ["F", "c", "a", "c"]}}
ABOUT = {
    "format": 1, "subject": asdict(SUBJECT), "sites": list(SITES), "samples": 2, "shape": [3, 8, 8], "seeds": [0],
    "plans": [PLAN, FORA_PLAN, TOCA_PLAN],
}  # fmt: skip
NAN = float("nan")
TABLES = {
    "sigmas": torch.tensor(SIGMAS[:T]),
    "power": torch.ones(T, 2),
    "difference": torch.full((2, T, 2), 0.1),
    "gram/positive": torch.eye(T, dtype=torch.float64) + 1,
    "mean/blocks.0.attn": torch.ones(T, 2, 3).half(),
    "trend/blocks.0.mlp": torch.ones(2, 2, 3).half(),
    "trend_steps/blocks.0.mlp": torch.tensor([1, 3]),
    "router": torch.tensor([[NAN, NAN], [0.1, 0.9], [NAN, NAN], [0.0, 1.0]], dtype=torch.float64),
}


def file(about=ABOUT, tables=TABLES) -> bytes:
    text = about if isinstance(about, str) else json.dumps(about)
    return save({k: v.contiguous() for k, v in tables.items()}, {"priorcache": text.encode(errors="replace").decode()})


VALID = file()
HEADER = 8 + int.from_bytes(VALID[:8], "little")
JSON_HEADER = json.loads(VALID[8:HEADER])
BODY = VALID[HEADER:]

names = st.sampled_from([*TABLES, "gram/negative", "gram/", "mean/c", "mean/", "trend/", "trend_steps/x", "later"])
names = names | st.text(max_size=8)
shapes = st.none() | st.lists(st.integers(0, 4), max_size=4)  # None: the right one


@pytest.fixture(scope="module", autouse=True)
def warm(folder):
    """What is imported or built at the first use is no case's doing."""
    used(Prior.load(put(folder / "prior.safetensors", VALID)), folder)
    for kind in policies.__all__:
        with suppress(PriorCacheError):
            Plan(kind, {}, T, 2, 0.0, 0.0, 1).restored()


def used(prior: Prior, folder) -> Prior:
    """All that is made of a prior, except for pictures; each of it may refuse."""
    assert prior.samples >= 1
    shape = (prior.evaluations, len(prior.sites))
    for gap in range(1, len(prior.tables["difference"]) + 1):
        error = prior.reuse_error(gap)
        assert tuple(error.shape) == shape
        assert torch.equal(error.isnan(), (prior.tables["difference"][gap - 1] + prior.tables["power"]).isnan())
    schedule = Schedule(T, SIGMAS, "euler", "EPS", tuple(Site(s, 0, 1) for s in SITES))
    with suppress(PriorCacheError):
        asked(policy(prior, 0.5), schedule)
    with suppress(PriorCacheError):
        asked(EOC(FORA(2), Trend(prior), 0.5, judged(prior, 0.1)), schedule)
    with suppress(PriorCacheError):
        assert all(0 <= step < prior.evaluations for step in inflections(prior))
    for goal in ({"speedup": 1.5}, {"evaluations": 3}, {"error": 0.5}):
        with suppress(PriorCacheError):
            planned(chosen(prior.plans, **goal), prior)
    for plan in prior.plans:
        with suppress(PriorCacheError):
            planned(plan, prior)
    again = Prior.merge([prior, prior])
    assert (again.samples, again.sites) == (2 * prior.samples, prior.sites)
    prior.matches(prior.subject)
    return prior


def planned(plan, prior: Prior) -> None:
    made = plan.restored()
    asked(made, Schedule(T, SIGMAS, "euler", "EPS"))
    step_errors_of(made, plan.steps, prior)


def check(folder, content: bytes) -> Prior | None:
    path = put(folder / "prior.safetensors", content)
    found = tried("prior", lambda: used(Prior.load(path), folder), PriorError, folder, says=path.name)
    if found is not None:
        with torch.no_grad():
            saved = Prior.load(found.save(folder.parent / "again" / "prior.safetensors"))
        assert (saved.subject, saved.sites, saved.samples, saved.plans) == (
            found.subject, found.sites, found.samples, found.plans,
        )  # fmt: skip
    return found


def test_the_file_that_is_changed_is_a_prior_with_three_plans(folder):
    prior = check(folder, VALID)
    assert [type(plan.restored()).__name__ for plan in prior.plans] == ["Forecast", "FORA", "DuCa"]
    assert policy(prior, 0.5).decide(Step(1, T, 0.25, 4.0), Site(SITES[0], 0, 1)) is Action.REUSE


class TestBytes:
    @cases(700)
    @given(content=edited(VALID, HEADER))
    def test_changed(self, folder, content):
        check(folder, content)

    @cases(300)
    @given(position=st.integers(0, HEADER - 1), bit=st.integers(0, 7))
    def test_one_bit_of_the_header(self, folder, position, bit):
        content = bytearray(VALID)
        content[position] ^= 1 << bit
        check(folder, bytes(content))

    @cases(150)
    @given(content=st.binary(max_size=300))
    def test_random(self, folder, content):
        assert check(folder, content) is None


class TestHeader:
    @cases(150)
    @given(header=anything, body=st.binary(max_size=32))
    def test_of_any_json(self, folder, header, body):
        assert check(folder, spliced(json.dumps(header), body)) is None

    @cases(150)
    @given(
        length=st.sampled_from([0, 1, 2, HEADER, 2**24, 2**24 + 1, 2**31, 2**32, 2**63, 2**64 - 1])
        | st.integers(0, 2**64)
    )
    def test_of_any_length(self, folder, length):
        check(folder, spliced(VALID[8:HEADER], BODY, length))

    @cases(400)
    @given(
        name=st.sampled_from([*TABLES, "__metadata__"]),
        entry=st.fixed_dictionaries({
            "dtype": st.sampled_from(["F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "F4", "C64", "X", ""]) | scalars,
            "shape": st.lists(st.sampled_from([0, 1, 2, 4, 2**31, 2**40, 2**62, 2**63, 2**64]), max_size=4) | scalars,
            "data_offsets": st.lists(st.integers(-1, len(BODY) + 9) | st.sampled_from([2**40, 2**64 - 1]), max_size=3),
        }) | anything,
    )  # fmt: skip
    def test_with_one_entry_replaced(self, folder, name, entry):
        check(folder, spliced(json.dumps(JSON_HEADER | {name: entry}), BODY))

    @cases(100)
    @given(name=st.sampled_from([*TABLES, "__metadata__", "extra"]), twice=st.sampled_from(list(TABLES)))
    def test_with_a_name_twice(self, folder, name, twice):
        text = json.dumps(JSON_HEADER)
        check(folder, spliced(f'{{"{name}": {json.dumps(JSON_HEADER[twice])}, {text[1:]}', BODY))

    @cases(60)
    @given(text=st.sampled_from(DEEP), place=st.sampled_from(["header", "metadata", "sites", "settings", "plans"]))
    def test_of_deep_json(self, folder, text, place):
        if place == "header":
            check(folder, spliced(text, BODY))
        elif place == "metadata":
            check(folder, file(text))
        elif place == "settings":
            check(
                folder,
                file(json.dumps(ABOUT | {"plans": [PLAN | {"settings": {"x": 0}}]}).replace('"x": 0', '"x": ' + text)),
            )
        else:
            check(folder, file(json.dumps(ABOUT | {place: 0}).replace(f'"{place}": 0', f'"{place}": {text}')))


class TestMetadata:
    @cases(600)
    @given(key=st.sampled_from([*ABOUT, "extra"]), value=anything, drop=st.booleans())
    def test_with_one_entry_replaced(self, folder, key, value, drop):
        about = {k: v for k, v in ABOUT.items() if not (drop and k == key)} | ({} if drop else {key: value})
        check(folder, file(about))

    @cases(400)
    @given(
        field=st.sampled_from([*ABOUT["subject"], "extra"]),
        value=anything | st.sampled_from(["4", 4.5, NAN, 1e308, True]),
    )
    def test_a_subject_with_one_field_replaced(self, folder, field, value):
        check(folder, file(ABOUT | {"subject": ABOUT["subject"] | {field: value}}))

    @cases(150)
    @given(text=st.text(max_size=60) | anything.map(json.dumps))
    def test_of_any_text(self, folder, text):
        assert check(folder, file(text)) is None

    @cases(300)
    @given(
        key=st.sampled_from(["samples", "shape", "seeds", "sites", "format"]),
        value=st.sampled_from([0, -1, 1.0, "1", True, None, 2**63, 2**64, 10**300, 10**4000, NAN]),
        many=st.integers(0, 3),
    )
    def test_numbers_as_they_should_not_be(self, folder, key, value, many):
        value = value if key in ("samples", "format") else [value] * many
        check(folder, file(ABOUT | {key: value}))

    @cases(12)
    @given(size=st.sampled_from([10**5, 10**6]), key=st.sampled_from([*ABOUT, "extra"]), text=st.booleans())
    def test_of_much_text(self, folder, size, key, text):
        """A few MB where a few bytes are expected."""
        value = "x" * size if text else list(range(size // 10))
        check(folder, file(ABOUT | {key: value}))


class TestPlans:
    values = anything | st.sampled_from([NAN, float("inf"), 1e308, -1, 0, True, "2", 10**30, 10**400, [], {}, None])

    @cases(600)
    @given(which=st.integers(0, 2), field=st.sampled_from([*PLAN, "extra"]), value=values, drop=st.booleans())
    def test_with_one_field_replaced(self, folder, which, field, value, drop):
        plan = dict(ABOUT["plans"][which])
        plan.pop(field, None)
        check(folder, file(ABOUT | {"plans": [plan if drop else plan | {field: value}]}))

    @cases(1200)
    @given(which=st.integers(0, 2), name=st.sampled_from([*FORECAST, "places", "interval", "phase", "start", "end", "preset",
           "ratio", "selection", "faithful", "steps", "base", "history", "__class__"]), value=values)  # fmt: skip
    def test_with_one_setting_replaced(self, folder, which, name, value):
        plan = ABOUT["plans"][which]
        check(folder, file(ABOUT | {"plans": [plan | {"settings": plan["settings"] | {name: value}}]}))

    @cases(400)
    @given(
        kind=st.sampled_from(["FORA", "GOC", "EOC", "L2C", "Taylor", "ToCa", "DuCa", "Full", "CachePolicy", "Decline",
                              "__all__", "base", "os", "Forecast"]) | st.text(max_size=8),
        settings=st.dictionaries(st.sampled_from([*FORECAST, "base", "trends", "scores", "sites", "interval"]), values),
    )  # fmt: skip
    def test_of_any_policy(self, folder, kind, settings):
        check(folder, file(ABOUT | {"plans": [PLAN | {"policy": kind, "settings": settings}]}))

    @cases(300)
    @given(
        rows=st.lists(st.lists(st.floats() | st.integers(-2, 5), max_size=3), max_size=5),
        computed=st.lists(st.integers(-2, 9) | st.floats(0, 4), max_size=5),
        sigmas=st.lists(st.floats() | st.sampled_from([0, -1, 9, 4, 1]), max_size=6),
        coordinate=st.sampled_from(["auto", "sigma", "log snr", "step"]),
        corrector=st.sampled_from(["auto", "off", "linear", "quadratic", "cubic"]),
    )
    def test_of_any_numbers(self, folder, rows, computed, sigmas, coordinate, corrector):
        changed = {
            "gains": rows,
            "computed": computed,
            "sigmas": sigmas,
            "coordinate": coordinate,
            "corrector": corrector,
        }
        settings = FORECAST | {k: v for k, v in changed.items() if v}
        check(folder, file(ABOUT | {"plans": [PLAN | {"settings": settings}]}))

    @cases(100)
    @given(plans=st.lists(st.sampled_from(ABOUT["plans"]) | anything, max_size=5) | anything)
    def test_in_any_number(self, folder, plans):
        check(folder, file(ABOUT | {"plans": plans}))


class TestTables:
    @cases(800)
    @given(
        changes=st.dictionaries(
            names,
            st.none() | st.tuples(shapes, st.sampled_from(KINDS), st.sampled_from(NUMBERS)),
            min_size=1,
            max_size=3,
        )
    )
    def test_any(self, folder, changes):
        tables = dict(TABLES)
        for name, change in changes.items():
            if change is None:
                tables.pop(name, None)
            else:
                shape, kind, number = change
                tables[name] = filled(TABLES.get(name, TABLES["power"]).shape if shape is None else shape, kind, number)
        check(folder, file(tables=tables))

    @cases(300)
    @given(
        evaluations=st.integers(0, 5), gaps=st.integers(0, 3), sites=st.integers(0, 3), kind=st.sampled_from(KINDS[:4]),
        router=st.booleans(), gram=st.booleans(),
    )  # fmt: skip
    def test_that_agree_of_any_size(self, folder, evaluations, gaps, sites, kind, router, gram):
        tables = {
            "sigmas": torch.arange(evaluations, 0, -1).to(kind),
            "power": torch.ones(evaluations, sites, dtype=kind),
            "difference": torch.ones(gaps, evaluations, sites, dtype=kind),
        }
        tables |= {"router": torch.zeros(evaluations, sites, dtype=kind)} if router else {}
        tables |= {"gram/positive": torch.ones(evaluations, evaluations, dtype=kind)} if gram else {}
        about = ABOUT | {"sites": [f"s{i}" for i in range(sites)], "plans": []}
        good = check(folder, file(about, tables))
        assert good or not (evaluations and gaps) or kind is torch.bfloat16

    @cases(600)
    @given(
        name=st.sampled_from(list(TABLES)), place=st.integers(0, 40),
        number=st.sampled_from([*NUMBERS, 1e-300, 1e308, 5e-324, 65504.0, -0.0, 1.0000001]),
    )  # fmt: skip
    def test_one_number_of_one(self, folder, name, place, number):
        table = TABLES[name].clone()
        if table.dtype == torch.int64:
            number = int(number) if abs(number) < 1e18 else 2**62
        table.view(-1)[place % table.numel()] = torch.tensor(number).to(table.dtype)
        check(folder, file(tables=TABLES | {name: table}))


@pytest.mark.parametrize("kind", ["folder", "missing", "pipe", "dangling", "loop"])
def test_what_is_no_file(folder, kind):
    import os

    path = folder / f"{kind}.safetensors"
    make = {
        "folder": path.mkdir, "missing": lambda: None, "pipe": lambda: os.mkfifo(path),
        "dangling": lambda: path.symlink_to("nowhere"), "loop": lambda: path.symlink_to(path.name),
    }  # fmt: skip
    make[kind]()
    tried("prior", lambda: Prior.load(path), PriorError, folder, says=path.name)
