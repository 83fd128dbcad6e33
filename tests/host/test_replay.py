"""Images that say how they were cached: marked, saved as the host saves them, and replayed."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from priorcache.cache_core.policies import FORA, GOC, Forecast
from priorcache.cache_core.trace import RunTrace, Trace
from priorcache.priors.record import recorded

SETTINGS = {"steps": 9, "sampler": "euler", "scheduler": "karras"}
PLANNED = Forecast(computed=(0, 1, 4), gains=((0.93, 0.27),) * 9, corrector="linear")


@pytest.fixture
def replay(host, tmp_path, monkeypatch):
    import folder_paths
    from priorcache.nodes import replay

    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    return replay


BLACK = torch.zeros(1, 4, 4, 3)


def saved(path, text: str | None, key: str = "priorcache", picture=BLACK[0]) -> str:
    info = PngInfo()
    if text is not None:
        info.add_text(key, text)
    pixels = np.clip(255.0 * picture.numpy(), 0, 255).astype(np.uint8)  # as the host does
    Image.fromarray(pixels).save(path, pnginfo=info)
    return path.name


def hidden(said: dict, prompt: dict | None = None, node: str | None = None) -> SimpleNamespace:
    """What the host tells a node beside its inputs."""
    from comfy_execution.graph import DynamicPrompt

    return SimpleNamespace(extra_pnginfo=said, prompt=prompt, unique_id=node, dynprompt=DynamicPrompt(prompt or {}))


def stamped(replay, monkeypatch, trace: Trace, images=BLACK, said: dict | None = None) -> dict:
    """What Stamp Images leaves for Save Image."""
    said = {} if said is None else said
    monkeypatch.setattr(replay.PriorCacheStamp, "hidden", hidden(said), raising=False)
    assert replay.PriorCacheStamp.execute(images, trace).args[0] is images
    return said["priorcache"]


def test_without_a_trace_images_pass_unstamped(replay, monkeypatch):
    """As behind a bypassed Apply Cache."""
    said: dict = {}
    monkeypatch.setattr(replay.PriorCacheStamp, "hidden", hidden(said), raising=False)
    assert replay.PriorCacheStamp.execute(BLACK).args[0] is BLACK
    assert said == {}
    trace = next(i for i in replay.PriorCacheStamp.define_schema().inputs if i.id == "trace")
    assert trace.optional


@pytest.mark.parametrize("policy", [Forecast(2.0), FORA(2), GOC(FORA(3)), PLANNED], ids=lambda p: p.describe())
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


def run_of(policy) -> Trace:
    trace = Trace()
    trace.add(RunTrace(policy.describe(), 9, record=recorded(policy), complete=True))
    return trace


def test_each_picture_of_a_prompt_is_told_by_its_own_stamp(replay, monkeypatch, tmp_path):
    """The host writes one and the same text into all of them."""
    said, first, second = {}, torch.rand(2, 4, 6, 3), torch.rand(1, 4, 6, 3)
    stamped(replay, monkeypatch, run_of(FORA(2)), first, said)
    text = json.dumps(stamped(replay, monkeypatch, run_of(FORA(3)), second, said))
    for name, picture, policy in (("a", first[1], FORA(2)), ("b", second[0], FORA(3))):
        again, told = replay.PriorCacheReplay.execute(saved(tmp_path / f"{name}.png", text, picture=picture)).args
        assert (again, told) == (policy, f"1. {policy.describe()} ()")
    with pytest.raises(replay.StampError, match="2 stamped batches and is of none of them"):
        replay.PriorCacheReplay.execute(saved(tmp_path / "c.png", text, picture=torch.rand(4, 6, 3)))


def test_pictures_of_two_models_are_told_by_both_stamps(replay, monkeypatch, tmp_path):
    """As Wan 2.2 is sampled: a model for high noise and one for low, each with its own Apply Cache and Stamp Images."""
    said: dict = {}
    for policy in (FORA(2), Forecast(3.0)):
        trace = Trace()
        trace.add(RunTrace(policy.describe(), 4, about="euler", complete=True, record=recorded(policy)))
        text = stamped(replay, monkeypatch, trace, said=said)
    name = saved(tmp_path / "both.png", json.dumps(text))
    found = [replay.PriorCacheReplay.execute(name, run).args[0] for run in (1, 2)]
    assert found == [FORA(2), Forecast(3.0)]
    with pytest.raises(replay.StampError, match=r"holds 2 sampling run\(s\), and run is 3"):
        replay.PriorCacheReplay.execute(name, 3)


def test_two_halves_of_one_sampling_are_two_runs(replay, monkeypatch, tmp_path):
    trace = Trace()
    for node in ("5", "6"):
        run = RunTrace("FORA", 4, origin=("p", node), about="euler", complete=True, record=recorded(FORA(2)))
        trace.add(run)
    said: dict = {}
    for _ in range(2):  # a second stamp of the same trace tells nothing new
        text = stamped(replay, monkeypatch, trace, said=said)
    name = saved(tmp_path / "halves.png", json.dumps(text))
    assert [replay.PriorCacheReplay.execute(name, run).args[0] for run in (1, 2)] == [FORA(2)] * 2
    with pytest.raises(replay.StampError, match=r"holds 2 sampling run\(s\), and run is 3"):
        replay.PriorCacheReplay.execute(name, 3)
    bright = saved(tmp_path / "bright.png", json.dumps(text), picture=BLACK[0] + 1)
    assert "not the pixels that Stamp Images saw" in replay.PriorCacheReplay.execute(bright, 1).args[1]


def test_a_picture_of_another_model_is_not_told_of(replay, monkeypatch, tmp_path):
    """Stamp Images sits behind a sampler without a cache, and has the trace of another one."""
    trace = Trace()
    trace.add(RunTrace("FORA", 4, origin=("p", "5"), about="euler", complete=True, record=recorded(FORA(2))))
    prompt = {"9": {"inputs": {"images": ["8", 0]}}, "8": {"inputs": {"samples": ["7", 0]}}, "7": {"inputs": {}}}
    said: dict = {}
    monkeypatch.setattr(replay.PriorCacheStamp, "hidden", hidden(said, prompt, "9"), raising=False)
    replay.PriorCacheStamp.execute(BLACK, trace)
    assert said["priorcache"]["runs"] == []
    name = saved(tmp_path / "other.png", json.dumps(said["priorcache"]))
    with pytest.raises(replay.StampError, match="was not sampled by the model whose trace its Stamp Images has"):
        replay.PriorCacheReplay.execute(name, 1)


def test_pixels_that_were_not_stamped_are_told_of(replay, monkeypatch, tmp_path):
    """An upscaled picture is the stamped one still, an uncached one saved beside it is not."""
    text = json.dumps(stamped(replay, monkeypatch, run_of(FORA(2))))
    again, told = replay.PriorCacheReplay.execute(saved(tmp_path / "a.png", text, picture=torch.ones(8, 8, 3))).args
    assert again == FORA(2)
    assert "not the pixels that Stamp Images saw" in told


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
        (json.dumps([]), "damaged"),
        (json.dumps({"runs": [RUN], "stamps": [{"images": 3, "runs": []}]}), "damaged"),
        (
            json.dumps({"runs": [RUN], "stamps": [{"images": [[i]], "runs": []} for i in range(2)]}),
            "beside 2 stamped batches",
        ),
        (json.dumps({"runs": [RUN | {"record": {"policy": "FORA", "settings": 3}}]}), "damaged"),
        (
            json.dumps({"runs": [RUN | {"record": {"policy": "os.system", "settings": {}}}]}),
            "no policy of this version",
        ),
        (json.dumps({"runs": [RUN | {"record": None}]}), "Load Prior"),
        (json.dumps({"runs": []}), "wire it to the Apply Cache of its own branch"),
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


@pytest.mark.parametrize("run", [-1, 0, 2])
def test_a_run_that_the_image_does_not_tell_of_is_refused(replay, tmp_path, run):
    """A linked number comes unchecked."""
    name = saved(tmp_path / "a.png", json.dumps({"runs": [RUN]}))
    with pytest.raises(replay.StampError, match=f"holds 1 sampling run.*run is {run}"):
        replay.PriorCacheReplay.execute(name, run)


def test_a_name_is_looked_at_before_the_prompt_runs_where_it_is_known(replay, tmp_path):
    asked = replay.PriorCacheReplay.validate_inputs
    assert asked(saved(tmp_path / "a.png", None)) is True
    assert asked(None) is True  # another node will say it
    for wrong in ("b.png", "../a.png", 5):
        assert "upload it" in asked(wrong)
