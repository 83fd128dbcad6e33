"""The pack in running ComfyUI servers: both host versions, the shipped workflows, over the HTTP API."""

from __future__ import annotations

import json
import urllib.request
from io import BytesIO

import pytest
from host_server import Server, ServerError, started
from pack import ROOT
from PIL import Image

import workflows

NODES = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
"""Every node has a help page, and every page a node: `test_nodes.py` holds them against each other."""


@pytest.fixture(scope="module")
def info(server):
    return server.get("/object_info")


def first_run(**changes) -> tuple[dict, dict[str, str]]:
    """The shipped workflow, smaller: (prompt, node id by title)."""
    prompt = json.loads((ROOT / "workflows" / "api" / "01_first_run.json").read_text())
    ids = {node["_meta"]["title"]: key for key, node in prompt.items()}
    for key in (ids["KSampler: every step in full"], ids["KSampler: cached"]):
        prompt[key]["inputs"] |= {"steps": 5, **changes}
    prompt[ids["EmptyLatentImage"]]["inputs"]["batch_size"] = 2
    return prompt, ids


SMALL = {"steps": 10, "batch_size": 2, "runs": 1, "iterations": 8, "samplings": 4}


def smaller(prompt: dict) -> dict:
    """A workflow of the same nodes and links that is quickly run."""
    for node in prompt.values():
        node["inputs"] |= {
            k: min(v, SMALL[k]) for k, v in node["inputs"].items() if k in SMALL and not isinstance(v, list)
        }
    return prompt


def complaints(server: Server) -> list[str]:
    """Warnings and errors in the server's log that name this pack."""
    lines = server.output().splitlines()
    return [
        s
        for s in lines
        if ("priorcache" in s.lower()) and ("warn" in s.lower() or "error" in s.lower() or "fail" in s.lower())
    ]


class TestLatestHost:
    def test_all_nodes_are_there_and_nothing_was_complained_about(self, server, info):
        assert {n for n in info if n.startswith("PriorCache")} == NODES
        assert complaints(server) == []

    def test_the_demo_model_is_listed(self, info):
        spec = info["PriorCacheLoadDiT"]["input"]["required"]["model_name"]
        assert workflows.DEMO_MODEL in json.dumps(spec)

    def test_shipped_workflows_are_what_their_description_says(self, info):
        for name, content in workflows.files(info).items():
            assert (ROOT / "workflows" / name).read_text() == content, f"{name} is stale: python tools/dev.py workflows"

    def test_shipped_canvas_and_api_forms_agree_by_an_independent_converter(self, info):
        from comfy_cli.workflow_to_api import convert_ui_to_api

        for workflow in workflows.workflows():
            converted = convert_ui_to_api(json.loads((ROOT / "workflows" / f"{workflow.name}.json").read_text()), info)
            ours = workflow.api()
            assert converted.keys() == ours.keys()
            for key, node in ours.items():
                assert converted[key]["class_type"] == node["class_type"]
                assert converted[key]["inputs"] == node["inputs"]

    def test_help_pages_and_templates_are_served(self, server):
        for page in (f"{node}{kind}" for node in NODES for kind in (".md", "/zh.md")):
            with urllib.request.urlopen(f"{server.url}/extensions/ComfyUI-PriorCache/docs/{page}", timeout=30) as reply:
                assert len(reply.read()) > 300
        served = server.get("/workflow_templates")["ComfyUI-PriorCache"]
        assert sorted(served) == sorted(w.name for w in workflows.workflows())
        for workflow in served:
            url = f"{server.url}/api/workflow_templates/ComfyUI-PriorCache/{workflow}.jpg"
            with urllib.request.urlopen(url, timeout=30) as reply:
                assert Image.open(BytesIO(reply.read())).size == (480, 480), "python tools/dev.py thumbnails"

    def test_a_saved_image_is_made_again_from_what_it_says(self, server):
        prompt, ids = first_run(steps=10)
        link = prompt[ids["Cached"]]["inputs"]["images"]
        prompt["stamp"] = {
            "class_type": "PriorCacheStamp", "inputs": {"images": link, "trace": [ids["PriorCacheApply"], 1]}
        }  # fmt: skip
        prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": ["stamp", 0], "filename_prefix": "stamped"}}
        prompt[ids["PriorCacheApply"]]["inputs"]["policy"] = ["auto", 0]
        prompt["auto"] = {
            "class_type": "PriorCacheForecast",
            "inputs": {"speedup": 2.0, "coordinate": "auto", "order": "auto"},
        }
        first = server.image(server.run(prompt).outputs["save"]["images"][0])
        assert json.loads(Image.open(BytesIO(first)).text["priorcache"])["runs"][0]["record"]["policy"] == "Forecast"
        (server.base / "input" / "stamped.png").write_bytes(first)
        prompt["auto"] = {"class_type": "PriorCacheReplay", "inputs": {"image": "stamped.png", "run": 1}}
        again = server.image(server.run(prompt).outputs["save"]["images"][0])
        assert Image.open(BytesIO(again)).tobytes() == Image.open(BytesIO(first)).tobytes()

    def test_the_first_workflow_leaves_pictures_curves_and_sentences(self, server):
        prompt, ids = first_run()
        result = server.run(prompt)
        for title in ("In full", "Cached"):
            assert len(result.outputs[ids[title]]["images"]) == 2
        inspected = result.outputs[ids["PriorCacheInspect"]]
        picture = Image.open(BytesIO(server.image(inspected["images"][0])))
        assert picture.width == 800  # at a glance
        assert len(picture.convert("RGB").getcolors(2**24)) > 50
        assert "FORA N=2" in inspected["text"][0]
        run = inspected["priorcache"][0]
        assert [s["computed"] for s in run["steps"]] == [1, 0, 1, 0, 1]
        assert run["complete"]

    @pytest.mark.parametrize("name", [w.name for w in workflows.workflows()])
    def test_every_shipped_workflow_runs(self, server, name):
        prompt = workflows.at_hand(json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text()))
        result = server.run(smaller(prompt))
        assert any("images" in output for output in result.outputs.values())
        if name != "04_l2c":  # a few iterations may close no gate
            assert "computed everything" not in json.dumps(result.outputs)
            runs = [run for output in result.outputs.values() for run in output.get("priorcache", ())]
            assert all(run["computed_fraction"] < 1 for run in runs)

    def test_a_queue_that_the_host_serves_from_its_cache_shows_the_same_curves(self, server):
        prompt, ids = first_run(seed=11)
        first = server.run(prompt).outputs[ids["PriorCacheInspect"]]
        again = server.run(prompt)
        assert ids["KSampler: cached"] not in again.seconds
        assert again.outputs[ids["PriorCacheInspect"]]["priorcache"] == first["priorcache"]

    def test_a_new_seed_shows_the_new_run_only(self, server):
        prompt, ids = first_run(seed=12)
        server.run(prompt)
        prompt, ids = first_run(seed=13, steps=8)
        shown = server.run(prompt).outputs[ids["PriorCacheInspect"]]["priorcache"]
        assert [r["evaluations"] for r in shown] == [8]

    def test_two_samplers_on_one_model_are_kept_apart(self, server):
        prompt, ids = first_run(seed=14)
        second = json.loads(json.dumps(prompt[ids["KSampler: cached"]]))
        second["inputs"] |= {"seed": 15, "steps": 9, "denoise": 0.7, "latent_image": [ids["KSampler: cached"], 0]}
        prompt["second"] = second
        prompt["other"] = {
            "class_type": "PriorCacheInspect",
            "inputs": {"trace": [ids["PriorCacheApply"], 1], "latent": ["second", 0]},
        }
        result = server.run(prompt)
        assert [r["evaluations"] for r in result.outputs["other"]["priorcache"]] == [5, 9]
        assert [r["evaluations"] for r in result.outputs[ids["PriorCacheInspect"]]["priorcache"]] == [5]

    def test_two_traces_of_one_workflow_are_compared_and_written(self, server):
        prompt, ids = first_run(seed=21)
        full, inspect = ids["KSampler: every step in full"], prompt[ids["PriorCacheInspect"]]["inputs"]
        policy, apply = (json.loads(json.dumps(prompt[ids[name]])) for name in ("PriorCacheFORA", "PriorCacheApply"))
        policy["inputs"]["interval"] = 1
        apply["inputs"] |= {"policy": ["all", 0]}
        prompt |= {"all": policy, "applied": apply}
        prompt[full]["inputs"]["model"] = ["applied", 0]
        inspect |= {
            "before": ["applied", 1],
            "before_latent": [full, 0],
            "export": "PNG, CSV and JSON",
            "theme": "dark",
        }
        shown = server.run(prompt).outputs[ids["PriorCacheInspect"]]
        assert len(shown["images"]) == 2
        assert "where before (FORA N=1 (published)) took" in shown["text"][0]
        names = {path.name for path in (server.base / "output" / "PriorCache").glob("inspect_*")}
        assert {f"inspect_00001_{n}" for n in ("comparison.png", "trace.png", "trace_steps.csv", "all.json")} <= names
        assert all(name in shown["text"][0] for name in names)

    def test_bypassing_apply_gives_exactly_the_uncached_picture(self, server):
        prompt, ids = first_run(seed=16)
        prompt[ids["KSampler: cached"]]["inputs"]["model"] = ["1", 0]  # what the canvas sends for a bypassed node
        prompt[ids["PriorCacheInspect"]]["inputs"].pop("trace")
        result = server.run(prompt)
        full, cached = ([server.image(e) for e in result.outputs[ids[t]]["images"]] for t in ("In full", "Cached"))
        assert [Image.open(BytesIO(a)).tobytes() for a in full] == [Image.open(BytesIO(a)).tobytes() for a in cached]
        assert "bypassed" in result.outputs[ids["PriorCacheInspect"]]["text"][0]

    def test_the_calibration_workflow_saves_a_prior_that_loads(self, server):
        prompt = json.loads((ROOT / "workflows" / "api" / "01_calibrate.json").read_text())
        ids = {node["_meta"]["title"]: key for key, node in prompt.items()}
        prompt[ids["PriorCacheCalibrate"]]["inputs"] |= {"steps": 5, "runs": 1}
        prompt[ids["EmptyLatentImage"]]["inputs"]["batch_size"] = 2
        result = server.run(prompt)
        assert result.outputs[ids["PriorCacheCalibrate"]]["images"]
        assert (server.base / "models" / "priorcache" / "shapes-dit ddim 50.safetensors").exists()
        inspect = {
            "1": {"class_type": "PriorCacheLoadPrior", "inputs": {"prior_name": "shapes-dit ddim 50.safetensors"}},
            "2": {"class_type": "PriorCacheInspect", "inputs": {"prior": ["1", 0]}},
        }
        assert "12 branches" in server.run(inspect).outputs["2"]["text"][0]

    def test_an_error_reaches_the_person_in_plain_words(self, server):
        prompt, ids = first_run(seed=17)
        prompt[ids["PriorCacheDiTLabel"]]["inputs"]["labels"] = "12"
        with pytest.raises(ServerError, match="this model knows 0 to 11"):
            server.run(prompt)

    def test_nothing_of_ours_was_complained_about_in_the_end(self, server):
        assert [s for s in complaints(server) if "this model knows 0 to 11" not in s and "Traceback" not in s] == []


def test_floor_host_loads_the_pack_and_samples(tmp_path):
    with started(tmp_path, host="COMFYUI_FLOOR") as floor:
        assert {n for n in floor.get("/object_info") if n.startswith("PriorCache")} == NODES
        prompt, ids = first_run()
        result = floor.run(prompt)
        run = result.outputs[ids["PriorCacheInspect"]]["priorcache"][0]
        assert [s["computed"] for s in run["steps"]] == [1, 0, 1, 0, 1]
        assert complaints(floor) == []


def test_a_latent_out_of_the_hosts_cache_is_not_told_of_by_what_another_prompt_sampled(tmp_path):
    with started(tmp_path, "--cache-lru", "50") as server:
        prompt, ids = first_run()
        link = prompt[ids["Cached"]]["inputs"]["images"]
        prompt["stamp"] = {
            "class_type": "PriorCacheStamp", "inputs": {"images": link, "trace": [ids["PriorCacheApply"], 1]}
        }  # fmt: skip
        prompt["save"] = {"class_type": "SaveImage", "inputs": {"images": ["stamp", 0], "filename_prefix": "stamped"}}
        told = []
        for steps in (5, 8, 5):
            prompt[ids["KSampler: cached"]]["inputs"]["steps"] = steps
            image = server.image(server.run(prompt).outputs["save"]["images"][0])
            told.append(json.loads(Image.open(BytesIO(image)).text["priorcache"])["runs"])
        assert [len(runs) for runs in told] == [
            1,
            1,
            0,
        ]  # the third is of the first, whose run made room for the second's
        assert ("5 steps" in told[0][0]["about"], "8 steps" in told[1][0]["about"]) == (True, True)
