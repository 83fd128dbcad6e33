"""Images that say how they were cached: marked, saved as the host saves them, and replayed."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from priorcache.cache_core.policies import FORA, GOC, Forecast
from priorcache.cache_core.trace import Trace

SETTINGS = {"steps": 9, "sampler": "euler", "scheduler": "karras"}


@pytest.fixture
def replay(host, tmp_path, monkeypatch):
    import folder_paths
    from priorcache.nodes import replay

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return replay


def saved(path, text: str | None, key: str = "priorcache") -> str:
    info = PngInfo()
    if text is not None:
        info.add_text(key, text)
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    return path.name


def stamped(replay, monkeypatch, trace: Trace) -> dict:
    """What Stamp Images leaves for Save Image."""
    said = {}
    hidden = SimpleNamespace(extra_pnginfo=said, prompt=None, unique_id=None)
    monkeypatch.setattr(replay.PriorCacheStamp, "hidden", hidden, raising=False)
    images = torch.zeros(1, 4, 4, 3)
    assert replay.PriorCacheStamp.execute(images, trace).args[0] is images
    return said["priorcache"]


@pytest.mark.parametrize("policy", [Forecast(2.0), FORA(2), GOC(FORA(3))], ids=lambda p: p.describe())
def test_a_replayed_image_comes_out_bit_by_bit(host, model, replay, monkeypatch, tmp_path, policy):
    trace = Trace()
    first = host.sample(host.attach(model, policy, trace), **SETTINGS)
    name = saved(tmp_path / "a.png", json.dumps(stamped(replay, monkeypatch, trace)))
    again, said = replay.PriorCacheReplay.execute(name, 1).args
    assert policy.describe().split()[0] in said
    fresh = Trace()
    assert torch.equal(host.sample(host.attach(model, again, fresh), **SETTINGS), first)
    assert [row.action for row in fresh.runs[0].rows] == [row.action for row in trace.runs[0].rows]


def test_auto_is_replayed_as_what_it_chose(host, model, replay, monkeypatch, tmp_path):
    from priorcache.priors.auto import Auto

    trace = Trace()
    first = host.sample(host.attach(model, Auto(2.0), trace), **SETTINGS)
    name = saved(tmp_path / "a.png", json.dumps(stamped(replay, monkeypatch, trace)))
    again = replay.PriorCacheReplay.execute(name).args[0]
    assert isinstance(again, Forecast)
    assert torch.equal(host.sample(host.attach(model, again), **SETTINGS), first)


def test_a_stopped_run_is_not_told_of(host, model, replay, monkeypatch):
    trace = Trace()
    with pytest.raises(KeyboardInterrupt):
        host.sample(host.attach(model, FORA(2), trace), **SETTINGS, callback=stop)
    assert stamped(replay, monkeypatch, trace)["runs"] == []


def stop(step, *_):
    if step == 3:
        raise KeyboardInterrupt


RUN = {"about": "euler", "policy": "FORA N=2", "record": {"policy": "FORA", "settings": {"interval": 2}}}


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, "does not say how"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        (json.dumps({"runs": [{}]}), "damaged"),
        (json.dumps({"runs": [RUN | {"record": {"policy": "FORA", "settings": 3}}]}), "damaged"),
        (
            json.dumps({"runs": [RUN | {"record": {"policy": "os.system", "settings": {}}}]}),
            "no policy of this version",
        ),
        (json.dumps({"runs": [RUN | {"record": None}]}), "Load Prior"),
        (json.dumps({"runs": []}), "0 sampling run"),
    ],
)
def test_other_images_are_refused_with_a_remedy(replay, tmp_path, text, match):
    from priorcache.errors import PriorCacheError

    with pytest.raises(PriorCacheError, match=match):
        replay.PriorCacheReplay.execute(saved(tmp_path / "a.png", text))


def test_what_is_no_image_or_lies_elsewhere_is_refused(replay, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(replay.StampError, match="cannot be read"):
        replay.PriorCacheReplay.execute("a.png")
    outside = tmp_path.parent / "outside.png"
    saved(outside, json.dumps({"runs": [RUN]}))
    for name in ("../outside.png", str(outside)):
        with pytest.raises(replay.StampError, match="input folder"):
            replay.PriorCacheReplay.execute(name)
