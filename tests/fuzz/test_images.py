"""Images that say how they were cached: a policy, or one clear error."""

from __future__ import annotations

import io
import json
from contextlib import suppress

import pytest
import torch
from fuzzing import DEEP, anything, asked, cases, edited, put, tried
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from priorcache.cache_core import policies
from priorcache.cache_core.policies import FORA, GOC, Forecast
from priorcache.cache_core.sites import Schedule, Site
from priorcache.errors import PriorCacheError
from priorcache.priors.record import record, restored

T, SITES = 10, ("blocks.0.attn", "blocks.0.mlp")
SCHEDULE = Schedule(T, (*(9.0 * 0.6**i for i in range(T)), 0.0), "euler", "EPS", tuple(Site(s, 0, 1) for s in SITES))
RUNS = [
    {"about": "DiT, 10 steps", "policy": policy.describe(), "record": record(policy)}
    for policy in (FORA(2), GOC(FORA(3), 1.2), Forecast(2.0))
]
SAID = {"format": 1, "runs": RUNS}


def image(said: str, form: str = "PNG", packed: bool = False) -> bytes:
    info, out = PngInfo(), io.BytesIO()
    info.add_text("priorcache", said, packed)
    Image.new("RGB", (4, 4)).save(out, form, **({"pnginfo": info} if form == "PNG" else {}))
    return out.getvalue()


VALID = image(json.dumps(SAID))


@pytest.fixture(scope="module")
def use(comfy, folder):
    import folder_paths
    from priorcache.nodes.replay import PriorCacheReplay

    before, folder_paths.input_directory = folder_paths.input_directory, str(folder)

    def use(name: str, run: int):
        policy, said = PriorCacheReplay.execute(name, run).args
        asked(policy, SCHEDULE)
        assert isinstance(said, str)
        return policy

    Image.init()  # imports the readers of all kinds
    for kind in policies.__all__:
        with suppress(PriorCacheError):
            restored(kind, {})
    with torch.no_grad():
        for i in range(3):
            use(put(folder / "a.png", VALID).name, i + 1)
    yield use
    folder_paths.input_directory = before


def check(folder, use, content: bytes, run: int = 1, ending: str = ".png"):
    path = put(folder / f"a{ending}", content)
    try:
        return tried("image that tells of caching", lambda: use(path.name, run), PriorCacheError, folder)
    finally:
        path.unlink()


def test_the_image_that_is_changed_tells_of_three_policies(folder, use):
    assert [type(check(folder, use, VALID, run)).__name__ for run in (1, 2, 3)] == ["FORA", "GOC", "Forecast"]
    assert check(folder, use, VALID, 4) is None


@cases(300)
@given(content=edited(VALID))
def test_changed_bytes(folder, use, content):
    check(folder, use, content)


@cases(60)
@given(content=st.binary(max_size=200), ending=st.sampled_from([".png", ".jpg", ".webp", ".gif", ".tiff", ""]))
def test_random_bytes(folder, use, content, ending):
    assert check(folder, use, content, ending=ending) is None


@cases(30)
@given(form=st.sampled_from(["JPEG", "WEBP", "GIF", "BMP", "PNG"]), packed=st.booleans())
def test_other_kinds_of_image(folder, use, form, packed):
    check(folder, use, image(json.dumps(SAID), form, packed))


@cases(300)
@given(said=anything | st.sampled_from(DEEP).map(lambda text: text), raw=st.booleans(), packed=st.booleans())
def test_any_text(folder, use, said, raw, packed):
    text = said if raw and isinstance(said, str) else json.dumps(said)
    check(folder, use, image(text.encode("utf-8", "ignore").decode(), packed=packed))


@cases(300)
@given(
    key=st.sampled_from(["about", "policy", "record", "extra"]),
    value=anything,
    run=st.integers(1, 3),
    drop=st.booleans(),
)
def test_a_run_with_one_entry_replaced(folder, use, key, value, run, drop):
    runs = [dict(of) for of in RUNS]
    runs[run - 1].pop(key, None)
    if not drop:
        runs[run - 1][key] = value
    check(folder, use, image(json.dumps({"format": 1, "runs": runs})), run)


@cases(500)
@given(
    which=st.integers(0, 2), name=st.sampled_from(["base", "eta", "queue", "interval", "phase", "computed", "sigmas", "gains",
                                                   "level", "inflections", "policy", "settings"]),
    value=anything | st.sampled_from([record(FORA(2)), record(GOC(FORA(2))), {"policy": "GOC", "settings": {}}, float("nan")]),
)  # fmt: skip
def test_a_record_with_one_setting_replaced(folder, use, which, name, value):
    told = RUNS[which]["record"]
    told = told | ({name: value} if name in told else {"settings": told["settings"] | {name: value}})
    check(folder, use, image(json.dumps({"format": 1, "runs": [RUNS[which] | {"record": told}]})))


@cases(20)
@given(depth=st.sampled_from([2, 5, 50, 300]), kind=st.sampled_from(["GOC", "Taylor"]))
def test_policies_within_policies(folder, use, depth, kind):
    told = record(FORA(2))
    for _ in range(depth):
        told = {"policy": kind, "settings": {"base": told}}
    check(folder, use, image(json.dumps({"format": 1, "runs": [RUNS[0] | {"record": told}]})))


@cases(20)
@given(
    size=st.sampled_from([10**4, 900_000, 3 * 10**6]),
    key=st.sampled_from(["about", "policy"]),
    packed=st.booleans(),
    run=st.integers(1, 2),
)
def test_much_text(folder, use, size, key, packed, run):
    check(folder, use, image(json.dumps({"format": 1, "runs": [RUNS[0] | {key: "x" * size}]}), packed=packed), run)
