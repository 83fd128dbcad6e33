"""What the picture shows and leaves out."""

from priorcache.benchmarks.curves import LOOKS, draw
from priorcache.benchmarks.standings import BASELINES, DEFAULT, PLAN, Point, Setting, pictured


def setting(model="dit", sampler="euler", machine="a machine", **about) -> Setting:
    usual = {"model": model, "sampler": sampler, "steps": 28, "cfg": 3.0, "counts": [14, 7], "alone": True}
    points = [
        Point("all steps", 28, 0.0, 0, 0, 10.0),
        Point("reuse", 14, 0.09, 0, 20, 5.0),
        Point("reuse", 7, 4.0, 0, 20, 2.5),
        Point(DEFAULT, 14, 0.04, 0, 22, 5.0),
        Point(PLAN, 14, 0.02, 0, 25, 5.0),
        Point(PLAN, 7, 0.05, 0, 25, 2.5),
    ]
    return Setting(usual | {"machine": machine} | about, points)


def test_every_method_has_a_look():
    assert set(LOOKS) == {*BASELINES, DEFAULT, PLAN}
    assert len(set(LOOKS.values())) == len(LOOKS)


def test_only_settings_whose_times_can_be_told_have_a_panel():
    whole = setting()
    others = (setting(alone=False), setting(machine="x; reuse on y"), setting(steps=20), setting(cfg=1.0))
    assert pictured([whole, *others]) == [whole]


def test_a_panel_per_network_and_sampler_with_shares_of_time_and_no_ruined_pictures():
    figure = draw([setting(model, sampler) for model in ("dit", "flux") for sampler in ("dpmpp_2m", "euler")])
    panels = [axes for axes in figure.axes if axes.axison]
    titles = [axes.get_title(loc="left") for axes in panels]
    assert len(panels) == 4
    assert sorted(titles) == sorted(
        f"{model}, {sampler}, 28 steps, cfg 3" for model in ("dit", "flux") for sampler in ("euler", "dpmpp_2m")
    )
    lines = {line.get_label(): line for line in panels[0].get_lines()}
    assert set(lines) == {"reuse", DEFAULT, PLAN}
    assert lines["reuse"].get_xydata().tolist() == [[0.5, 0.09]]
    assert lines[PLAN].get_xydata().tolist() == [[0.5, 0.02], [0.25, 0.05]]
    assert len(figure.legends[0].get_texts()) == 3
