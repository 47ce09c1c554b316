"""How the time of a plan is made from trials."""

from dataclasses import replace

import pytest

from vlora.merge import AdapterSource, MergeConfig
from vlora.merge.plan import duration, trial
from vlora.merge.plan.cost import Cost, ModuleKind


def test_large_modules_are_tried_at_smaller_sizes():
    kind = ModuleKind((96, 512), (2, 2), "kronecker", (512, 96, None), (True, True))
    sizes = trial._sizes(kind)
    assert [size.shape for size in sizes] == [(48, 256), (96, 512)]
    assert sizes[0].grams == (256, 48, None)
    short = replace(kind, grams=(300, 8, None))
    assert trial._sizes(short)[0].grams == (256, 8, None)


def test_what_does_not_grow_is_not_multiplied():
    """Times .1 + 2 F and 3 F, at twice and four times the operations of two trials; a shrinking time stays."""
    cost = [Cost(f, t, 0) for f, t in ((1.0, 1.0), (2.0, 2.0), (8.0, 4.0))]
    tried = [(cost[0], (2.1, 3.0, 1.0)), (cost[1], (4.1, 6.0, 0.5))]
    assert trial._scaled(tried, cost[2]) == pytest.approx((16.1, 24.0, 0.5))
    assert trial._scaled(tried[:1], cost[2]) == pytest.approx((16.8, 24.0, 4.0))


def test_merges_are_counted_as_often_as_they_are_done(monkeypatch):
    """Linear of two adapters: 5 modules, 3 checked with 2 merges and each adapter alone."""
    monkeypatch.setattr(duration, "run_trial", lambda *_: trial.Trial(1.0, 0.1, 0.5, 1.0))
    config = MergeConfig(
        method="linear", adapters=(AdapterSource(path="a"), AdapterSource(path="b")), output="o"
    )
    kinds = [ModuleKind((8, 8), (2, 2))] * 5
    seconds, basis = duration.duration(config, kinds, 0, 0, 0)
    assert seconds == pytest.approx(5 * 1.5 + 3 * (2 * 1.0 + 2 * 0.1) + 0.2)
    assert basis.startswith("7.5 s for the modules and 6.6 s for the checks")
    unchecked = replace(config, verify=False)
    assert duration.duration(unchecked, kinds, 0, 0, 0)[0] == pytest.approx(7.7)
    weighed = replace(config, method="gradient_matching", verify=False)
    kinds = [ModuleKind((8, 8), (2, 2), "kronecker", (8, 8, None))] * 5
    assert duration.duration(weighed, kinds, 0, 0, 0)[0] == pytest.approx(7.7 + 4 * (2 * 1.0 + 3 * 0.5))
