"""Ranks in words."""

from vlora.merge.report.ranks import ModuleRank, rank_summary


def row(rank, inputs, retained: float | None = 1.0, curvature="none", module="m"):
    return ModuleRank(module, rank, tuple(inputs), retained, curvature)


def test_sums_are_written_out():
    assert rank_summary([row(32, [8] * 4)] * 3) == "32 = 4 x 8, nothing cut; `rank: keep` would cut to 8"
    assert rank_summary([row(12, [4, 8])]) == "12 = 4 + 8, nothing cut"  # keep would be refused
    assert rank_summary([row(8, [8])]) == "8, nothing cut"
    assert rank_summary([]) == ""


def test_what_is_cut_is_told_with_the_energy_that_stays():
    rows = [row(8, [8, 8], 0.9, "kronecker"), row(8, [8, 8], 0.8, "kronecker")]
    assert rank_summary(rows) == "8 from 2 x 8, 85.0% of the curvature-weighted energy retained"
    rows = [row(8, [8, 8], 0.5, "activations")]
    assert rank_summary(rows) == "8 from 2 x 8, 50.0% of the input-weighted energy retained"
    rows = [row(8, [8, 8], 0.5, "kronecker"), row(8, [8, 8], 1.0, "isotropic")]
    assert rank_summary(rows).endswith("75.0% of the energy (weighted where there is curvature) retained")


def test_unknown_energy_is_left_out():
    assert rank_summary([row(8, [8, 8], None)]) == "8 from 2 x 8"
    assert rank_summary([row(None, [8, 8], None)]) == "by energy"
    assert rank_summary([row(8, [8, 8], None), row(8, [8, 8], 1.0)]) == "8 from 2 x 8"


def test_kinds_are_counted_commonest_first():
    rows = [row(16, [8, 8])] * 5 + [row(8, [8])] * 2
    assert rank_summary(rows) == (
        "16 = 2 x 8 in 5 of 7 modules, 8 in 2 of 7 modules, nothing cut; `rank: keep` would cut to 8"
    )
    many = [row(r, [r]) for r in range(1, 6)]
    assert rank_summary(many).endswith("3 in 1 of 5 modules, 2 more kinds, nothing cut")
