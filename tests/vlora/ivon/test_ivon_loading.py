"""Checkpoints that do not belong to an optimizer are refused while it is as it was."""

import copy

import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step, same, through_disk, weights

from vlora import IVON
from vlora.errors import TrainingError


def net(*sizes):
    torch.manual_seed(0)
    return torch.nn.Sequential(*(torch.nn.Linear(*size) for size in sizes))


def trained(model, optimizer, steps=2):
    for _ in range(steps):
        optimizer.zero_grad()
        if isinstance(optimizer, IVON):
            optimizer.train()
        model(torch.ones(3, 4)).square().mean().backward()
        optimizer.step()
    return through_disk(optimizer.state_dict())


def ivon(params, **settings):
    return IVON(params, **{"lr": 0.1, "ess": 100.0, **settings})


def refused(optimizer, saved, message):
    """That ``saved`` is refused and the optimizer has the very state, groups and weights it had."""
    before = copy.deepcopy(optimizer.state_dict())
    held = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    with pytest.raises(TrainingError, match=message):
        optimizer.load_state_dict(saved)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"].keys() == before["state"].keys()
    for number, state in before["state"].items():
        assert state.keys() == after["state"][number].keys()
        assert all(torch.equal(value, after["state"][number][key]) for key, value in state.items())
    assert same(held, [p for group in optimizer.param_groups for p in group["params"]])


@pytest.fixture
def running():
    """A model of one layer and its optimizer after two steps."""
    model = net((4, 3))
    optimizer = ivon(model.parameters(), lr=0.2, ess=50.0)
    trained(model, optimizer)
    return model, optimizer


class TestOtherParameters:
    def test_other_shapes(self, running):
        other = net((4, 4))
        saved = trained(other, ivon(other.parameters()))
        refused(running[1], saved, r"shape \(3, 4\) for parameter 0, the checkpoint has \(4, 4\)")
        trained(*running)

    def test_more_parameters_or_groups(self, running):
        other = net((4, 4), (4, 3))
        refused(
            running[1],
            trained(other, ivon(other.parameters())),
            "of 2 parameters, got one of 4 parameters: build the optimizer from the same parameters",
        )
        split = net((4, 3))
        saved = trained(split, ivon([{"params": [p]} for p in split.parameters()]))
        refused(running[1], saved, r"of 2 parameters, got one of 1 \+ 1 parameters")

    def test_another_order_of_names(self):
        model = net((4, 4), (4, 4))
        saved = trained(model, ivon(model.named_parameters()))
        pairs = list(model.named_parameters())
        swapped = ivon([*pairs[2:], *pairs[:2]])
        refused(swapped, saved, "has '0.weight' where parameter group 0 has '1.weight'")
        for group in saved["param_groups"]:
            del group["param_names"]
        swapped.load_state_dict(saved)  # nobody can know

    def test_names_under_wrappers_are_the_same(self):
        model = net((4, 4))
        wrapped = [(f"module._orig_mod.{name}", p) for name, p in model.named_parameters()]
        ivon(model.named_parameters()).load_state_dict(trained(model, ivon(wrapped)))


class TestOtherOptimizers:
    def test_adamw(self, running):
        other = net((4, 3))
        saved = trained(other, torch.optim.AdamW(other.parameters()))
        refused(
            running[1], saved, "of another optimizer with the state exp_avg, exp_avg_sq, step: resume with"
        )
        unused = torch.optim.AdamW(net((4, 3)).parameters()).state_dict()
        refused(running[1], unused, "of IVON, got one of another optimizer: resume")
        refused(running[1], {}, "without 'state' and 'param_groups'")

    def test_older_versions_of_ivon_are_taken(self):
        """Their groups have the settings of the first version only."""
        model, optimizer = make()
        one_step(model, optimizer, 0)
        saved = optimizer.state_dict()
        first = {
            "params", "lr", "ess", "hess_init", "beta1", "beta2", "weight_decay", "clip_radius", "rescale_lr",
            "debias", "hess_approx", "grad_batch_size", "mc_samples", "seed", "prior_precision", "skip_nonfinite",
            "foreach", "draw", "eval_draw", "sampled", "skipped_steps",
        }  # fmt: skip
        old = [{key: group[key] for key in first} for group in saved["param_groups"]]
        twin, resumed = make(seed=5)
        resumed.load_state_dict({**saved, "param_groups": old})
        twin.load_state_dict(model.state_dict())
        for m, o in ((model, optimizer), (twin, resumed)):
            one_step(m, o, 1)
        assert same(weights(model), weights(twin))

    def test_checkpoint_of_an_optimizer_without_steps(self):
        model, optimizer = make()
        optimizer.load_state_dict(make(seed=4)[1].state_dict())
        one_step(model, optimizer, 0)


class TestFailedRuns:
    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            (
                "hess",
                float("nan"),
                r"h \+ weight_decay, which must be > 0 and finite, is between nan and nan",
            ),
            ("hess", -1.0, r"is between -0.9999 and "),
            ("hess", -1e-4, r"is between 0 and "),
            ("hess", float("inf"), r"and inf\. The run had failed"),
            ("mean", float("nan"), r"parameter 1, shape \(3,\): its mean holds NaN"),
            ("momentum", float("inf"), "its momentum holds NaN or infinity"),
        ],
    )
    def test_state_without_draws(self, running, key, value, message):
        saved = copy.deepcopy(running[1].state_dict())
        saved["state"][1][key][0] = value
        refused(running[1], saved, message)

    def test_eight_bit_state_without_draws(self):
        model, optimizer = make(state_bits=8, min_8bit_size=8)
        one_step(model, optimizer, 0)
        saved = copy.deepcopy(optimizer.state_dict())
        saved["state"][0]["hess_scale"].fill_(float("nan"))
        refused(optimizer, saved, "which must be > 0 and finite, is between nan and nan")

    @pytest.mark.parametrize(("key", "value"), [("lr", float("nan")), ("ess", 0.0), ("weight_decay", -1.0)])
    def test_settings(self, running, key, value):
        saved = copy.deepcopy(running[1].state_dict())
        saved["param_groups"][0][key] = value
        refused(running[1], saved, f"{key} of parameter group 0 is {value}, it must be")


class TestAfterConstruction:
    """What a scheduler or a callback may write into the groups, and what a lowered prior does to h."""

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("ess", 0.0, "> 0 and finite"),
            ("ess", -5.0, "> 0 and finite"),
            ("weight_decay", -1.0, ">= 0 and finite"),
            ("lr", float("nan"), ">= 0 and finite"),
            ("lr", -1.0, ">= 0 and finite"),
        ],
    )
    def test_settings_are_named_before_the_draw(self, running, key, value, words):
        model, optimizer = running
        before = weights(model)
        optimizer.param_groups[0][key] = value
        with pytest.raises(
            TrainingError, match=f"{key} of parameter group 0 is {value}, it must be {words}: a sched"
        ):
            optimizer.train()
        assert same(before, weights(model)) and not optimizer.holds_sample

    def test_a_schedule_may_miss_zero_by_rounding(self, running):
        running[1].param_groups[0]["lr"] = -1e-19
        trained(*running)

    def test_h_at_or_below_zero_is_named_as_the_cause(self, running):
        model, optimizer = running
        optimizer.state[model[0].bias]["hess"].fill_(-0.01)
        optimizer.train()
        model(torch.ones(3, 4)).square().mean().backward()
        message = r"data are not the cause: .* shape \(3,\) its h \+ weight_decay, .* between -0.0099"
        with pytest.raises(TrainingError, match=message):
            optimizer.step()

    def test_a_mean_that_is_lost_is_named_as_the_cause(self, running):
        model, optimizer = running
        with torch.no_grad():
            model[0].weight[0, 0] = float("inf")
        optimizer.train()
        model(torch.ones(3, 4)).square().mean().backward()
        with pytest.raises(TrainingError, match=r"shape \(3, 4\) its mean holds NaN or infinity"):
            optimizer.step()

    def test_skipping_without_end_warns_once_with_the_cause(self):
        model, optimizer = make(skip_nonfinite=True)

        def step(factor):
            optimizer.zero_grad()
            optimizer.train()
            (factor * loss_of(model, batch(0))).backward()
            optimizer.step()

        for _ in range(3):
            for _ in range(9):
                step(float("nan"))
            step(1.0)
        with pytest.warns(
            UserWarning, match="skipped 10 steps in a row.*Check the data and the loss, lower lr"
        ) as caught:
            for _ in range(25):
                step(float("nan"))
        assert len(caught) == 1 and optimizer.skipped_steps == 52
