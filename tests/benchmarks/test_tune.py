"""The papers' constants against tuned ones."""

import pytest
import torch
from priorcache.benchmarks.tune import PAPERS, Pictures, row
from priorcache.cache_core.policies import FORA, GOC, Taylor
from priorcache.cache_core.sites import MODEL, Schedule
from priorcache.priors.search import Outcome

SCHEDULE = Schedule(10, sites=(MODEL,))


def pictures(scale: float) -> Pictures:
    """Two, which err by order: the second one by twice as much."""

    def sample(policy, pictures=2) -> Outcome:
        error = scale * (2 if policy.order == 1 else 1)
        return Outcome(torch.tensor([[1.0, error], [1.0, 2 * error]])[:pictures], 0.5)

    return Pictures(sample, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), SCHEDULE)


def test_a_row_judges_what_was_tuned_on_other_pictures():
    found = row("Taylor", Taylor(FORA(2, "aligned", level="model")), pictures(0.1), pictures(0.3), 8)
    assert found.tuning.after.order == 2
    assert found.tuning.errors == pytest.approx((0.3, 0.15))
    assert found.before.tolist() == pytest.approx([0.6, 1.2])
    assert found.after.tolist() == pytest.approx([0.3, 0.6])
    assert found.gain == pytest.approx((0.5, 0.0))
    assert str(found) == "| Taylor | 50.0% / 50.0% | 0.3000 / 0.1500 | 0.9000 / 0.4500 | 50% +- 0% |"


def test_what_is_tuned_begins_with_the_constants_of_the_authors():
    assert PAPERS["GOC 1.2 on FORA 50 %"](None) == GOC(FORA(2, "aligned"), 1.2)
    assert PAPERS["DuCa"](None).settings.ratio == 0.05
