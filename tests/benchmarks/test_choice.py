"""What is compared where Forecast declines."""

import torch
from priorcache.benchmarks.choice import candidates, judged
from priorcache.benchmarks.frontier import Bench


def test_every_candidate_samples_about_what_the_goal_asks_for(comfy):
    from priorcache.nodes import dit
    from subjects import dit as tiny

    conds = dit.conditioning(torch.tensor([1, 2])), dit.conditioning(torch.tensor([-1, -1]))
    with torch.inference_mode():
        bench = Bench(tiny().model, 10, 1.5, "euler_ancestral", "normal", [(*conds, torch.zeros(2, 3, 16, 16), 7)])
        rows = judged(bench, [2.0])
    assert [name for name, *_ in rows] == list(candidates(2.0))
    assert all(0.4 <= share <= 0.6 for _, _, share, *_ in rows)
    assert all(error > 0 for *_, error, _ in rows)
