"""Checkpoints of accelerate: FSDP2, DDP and one process go on as each other, on another number of processes."""

import fsdp_problems as fsdp
import pytest
import torch
from fsdp_problems import HYPER, Net
from safetensors.torch import save_model
from test_ivon_ddp import assert_same_bits
from two_ranks import TwoRanks

from vlora import IVON
from vlora.errors import CheckpointError, TrainingError
from vlora.ivon.checkpoints import load_states

KINDS = ("fsdp", "ddp", "alone")


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
    fsdp.accelerate_run("alone", 2, save=str(tmp_path / "alone"))
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
    for name in ("sharded", "gathered", "ddp", "alone"):
        for kind in KINDS:
            go_on(kind, name, helper=True)


def trained(steps=2, **settings):
    model, optimizer = fsdp.net(False, **settings)
    fsdp.loop(model, optimizer, steps, False)
    return model, optimizer


def save_whole(folder, model, optimizer):
    folder.mkdir()
    save_model(model, str(folder / "model.safetensors"))
    torch.save(optimizer.state_dict(), folder / "optimizer.bin")
    return folder


def save_sharded(folder, model, optimizer):
    """As accelerate does for FSDP2."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict

    parts = {"model": get_model_state_dict(model)}, {"optimizer": get_optimizer_state_dict(model, optimizer)}
    for part, name in zip(parts, ("pytorch_model_fsdp_0", "optimizer_0"), strict=True):
        dcp.save(part, checkpoint_id=folder / name, no_dist=True)
    return folder


pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SAVERS = pytest.mark.parametrize("save", [save_whole, save_sharded])


@SAVERS
def test_a_draw_that_was_saved_becomes_the_mean(tmp_path, save):
    model, optimizer = trained()
    mean = [p.detach().clone() for p in model.parameters()]
    optimizer.train()
    folder = save(tmp_path / "checkpoint", model, optimizer)
    other, ivon = fsdp.net(False)
    load_states(other, ivon, *fsdp.read_states(folder))
    assert not ivon.holds_sample
    for here, there in zip(other.parameters(), mean, strict=True):
        assert torch.equal(here, there)


def test_eight_bit_states_and_tied_weights(tmp_path):
    def tied():
        model = Net()
        model.third = torch.nn.Linear(4, 7, bias=False)
        model.third.weight = model.first.weight
        return model, IVON(model.parameters(), state_bits=8, min_8bit_size=1, **HYPER)

    model, optimizer = tied()
    fsdp.loop(model, optimizer, 2, False)
    folder = save_whole(tmp_path / "checkpoint", model, optimizer)
    other, ivon = tied()
    load_states(other, ivon, *fsdp.read_states(folder))
    fsdp.loop(model, optimizer, 2, False, start=2)
    fsdp.loop(other, ivon, 2, False, start=2)
    assert torch.equal(other.first.weight, model.first.weight)
    assert torch.equal(other.third.weight, model.first.weight)


class Wider(Net):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 9)


def assert_untouched(model, optimizer, before):
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(int(state["step"]) == 0 for state in optimizer.state.values())


@SAVERS
def test_another_model_is_refused_and_nothing_changes(tmp_path, save):
    folder = save(tmp_path / "checkpoint", *trained())
    model = Wider()
    optimizer = IVON(model.parameters(), **HYPER)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(
        (CheckpointError, TrainingError), match="as in the run that was saved|another model"
    ) as caught:
        load_states(model, optimizer, *fsdp.read_states(folder))
    assert "\n" not in str(caught.value)
    assert_untouched(model, optimizer, before)


def test_weights_of_another_model_are_refused(tmp_path):
    """An adapter of the same shape on another base: the optimizer state alone would fit."""
    model, optimizer = trained()
    model.extra = torch.nn.Linear(2, 2)
    folder = save_whole(tmp_path / "checkpoint", model, optimizer)
    other, ivon = fsdp.net(False)
    before = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(CheckpointError, match=r"of another model: 2 tensors .*first 'extra.bias'"):
        load_states(other, ivon, *fsdp.read_states(folder))
    assert_untouched(other, ivon, before)


@SAVERS
def test_other_optimizers_are_refused(tmp_path, save):
    model, _ = fsdp.net(False)
    adam = torch.optim.AdamW(model.parameters())
    fsdp.loss_of(model, fsdp.batch(0)).backward()
    adam.step()
    folder = save(tmp_path / "checkpoint", model, adam)
    other, ivon = fsdp.net(False)
    before = [p.detach().clone() for p in other.parameters()]
    with pytest.raises(
        (CheckpointError, TrainingError), match="does not fit this model and IVON|another optimizer"
    ):
        load_states(other, ivon, *fsdp.read_states(folder))
    assert_untouched(other, ivon, before)


def test_what_is_no_state_of_an_optimizer_is_refused(tmp_path):
    model, optimizer = trained()
    with pytest.raises(
        CheckpointError, match=r"got 'optimizer'; hand over what the file holds under 'optimizer'"
    ):
        load_states(model, optimizer, model.state_dict(), {"optimizer": optimizer.state_dict()})
