"""Checkpoints of accelerate: FSDP2, DDP and one process go on as each other, on another number of processes."""

import fsdp_problems as fsdp
import pytest
from test_ivon_ddp import assert_same_bits
from two_ranks import TwoRanks


@pytest.fixture(scope="module")
def three_ranks():
    ranks = TwoRanks(3)
    yield ranks
    ranks.stop()


def assert_goes_on(found, whole):
    """Equal to the uninterrupted run within 5e-6 of each tensor's largest entry: sums go in another order."""
    for here, there in zip(found, whole, strict=True):
        for key, value in there.items():
            assert (here[key] - value).abs().max() <= 5e-6 * value.abs().max()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process loads what two saved
def test_accelerate_checkpoints_go_to_another_number_of_processes(two_ranks, three_ranks, tmp_path):
    """4 steps of 12 rows without a stop, against 2 on two processes, a checkpoint, and 2 on three or one."""
    whole = fsdp.accelerate_run("alone", 4)
    first, second = two_ranks(fsdp.accelerate_run, "fsdp", 4)
    assert_same_bits(first, second)
    assert_goes_on(first, whole)
    two_ranks(fsdp.accelerate_run, "fsdp", 2, save=str(tmp_path / "sharded"))
    gathered = {"state_dict_type": "FULL_STATE_DICT"}
    two_ranks(fsdp.accelerate_run, "fsdp", 2, save=str(tmp_path / "gathered"), **gathered)
    two_ranks(fsdp.accelerate_run, "ddp", 2, save=str(tmp_path / "ddp"))
    again = two_ranks(fsdp.accelerate_run, "fsdp", 2, load=str(tmp_path / "sharded"), start=2)
    assert_same_bits(again[0], first)  # the same number of processes: every bit

    def go_on(kind, name, **options):
        run = (
            fsdp.accelerate_run
            if kind == "alone"
            else (lambda *a, **k: three_ranks(fsdp.accelerate_run, *a, **k))
        )
        found = run(kind, 2, load=str(tmp_path / name), start=2, **options)
        for each in [found] if kind == "alone" else found:
            assert_goes_on(each, whole)

    go_on("fsdp", "sharded")  # accelerator.load_state, on three processes
    go_on("fsdp", "gathered", **gathered)
    go_on("ddp", "ddp")
    go_on("alone", "ddp")
    for kind in ("fsdp", "ddp", "alone"):
        go_on(kind, "sharded", parts=True)
