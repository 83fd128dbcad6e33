"""Tables and files of what was inspected."""

import csv
import io
import json
from io import BytesIO

import pytest
import torch
from drawn import NAN, compute, prior, trace
from PIL import Image
from priorcache.cache_core.trace import RunTrace
from priorcache.plots import export
from priorcache.plots import trace as plot
from priorcache.plots.style import DARK
from priorcache.priors.plan import Plan


def rows(text: str) -> list[dict]:
    return list(csv.DictReader(io.StringIO(text)))


def test_steps_have_a_row_each_that_agrees_with_the_run():
    found = rows(export.steps_csv([trace(measure="truth"), trace(4, compute)]))
    assert [(r["run"], r["step"]) for r in found[4:8]] == [("0", "4"), ("0", "5"), ("1", "0"), ("1", "1")]
    assert [float(r["computed"]) for r in found] == [1, 0] * 3 + [1] * 4
    assert sum(float(r["seconds"]) for r in found[:6]) == pytest.approx(1.8)
    assert (found[1]["error_estimated"], float(found[1]["error_true"])) == ("", pytest.approx(0.03))
    assert (float(found[2]["error_estimated"]), found[2]["error_true"]) == (pytest.approx(0.04), "")
    assert found[0]["bytes"] == str(3 * 2**20)


def test_branches_have_a_row_per_evaluation_with_what_became_of_them():
    found = rows(export.branches_csv([trace(changed="corrected")]))
    assert len(found) == 6 * 6
    assert (found[7]["step"], found[7]["site"], found[7]["block"], found[7]["branch"]) == (
        "1",
        "blocks.0.mlp",
        "0",
        "mlp",
    )
    assert {r["kind"] for r in found} == {"computed", "corrected"}
    assert float(found[7]["error"]) == pytest.approx(0.02)


def test_unknown_and_infinite_numbers_are_empty_and_null():
    run = trace(error=lambda step, site: NAN if step else float("inf"))
    assert {r["error"] for r in rows(export.branches_csv([run]))} == {""}
    told = json.loads(export.as_json("said", [run]))
    assert {cell["error"] for cell in told["runs"][0]["branches"]} == {None}


def test_a_run_with_nothing_in_it_is_written():
    assert rows(export.branches_csv([RunTrace("FORA", 3)])) == []
    assert json.loads(export.as_json("said", [RunTrace("FORA", 3)]))["runs"][0]["branches"] == []


def test_json_holds_all_of_it():
    plans = [Plan("Forecast", {"computed": [0, 2]}, 6, 3, 0.1, 0.2, 4)]
    own = prior().planned(plans)
    own.tables["router"] = torch.full((6, 4), NAN)
    told = json.loads(export.as_json("said", [trace()], [trace(4)], own))
    assert told["summary"] == "said"
    assert [told[name][0]["evaluations"] for name in ("runs", "before")] == [6, 4]
    assert told["runs"][0]["branches"][0]["site"] == "blocks.0.attn"
    assert told["prior"]["subject"]["architecture"] == "DiT"
    assert told["prior"]["reuse_error"]["1"][0] == [None] * 4
    assert told["prior"]["reuse_error"]["2"][3][1] == pytest.approx(own.reuse_error(2)[3, 1].item())
    assert told["prior"]["plans"][0]["settings"] == {"computed": [0, 2]}
    assert told["prior"]["gates"][1] == [None] * 4
    assert set(json.loads(export.as_json("said"))) == {"summary"}


def test_a_prior_has_a_row_per_evaluation_branch_and_distance():
    own = prior()
    found = rows(export.prior_csv(own))
    assert len(found) == 6 * 4 * 2
    by = {(r["step"], r["site"], r["distance"]): r["error"] for r in found}
    assert by["0", own.sites[0], "1"] == by["1", own.sites[0], "2"] == ""
    assert float(by["3", own.sites[1], "2"]) == pytest.approx(own.reuse_error(2)[3, 1].item())
    assert {r["gate"] for r in found} == {""}


def test_plans_have_a_row_each():
    own = prior().planned([Plan("Forecast", {"computed": [0, 2]}, 6, 3, 0.1, 0.2, 4)])
    (found,) = rows(export.plans_csv(own))
    assert (found["speedup"], found["error"], found["computed"]) == ("2.0", "0.1", "0 2")


def test_a_png_is_finer_than_the_canvas_and_keeps_its_paper():
    figure = plot.draw([trace()], theme=DARK)
    image = Image.open(BytesIO(export.png(figure))).convert("RGB")
    assert image.width == round(figure.get_size_inches()[0] * export.DPI)
    assert "#{:02X}{:02X}{:02X}".format(*image.getpixel((1, 1))) == DARK.paper
