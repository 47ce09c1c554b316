"""Parameter groups: options for each, checks, empty and late groups, missing gradients."""

import pytest
import torch
from ivon_problems import batch, loss_of, make, one_step

from vlora import IVON
from vlora.errors import ConfigError, TrainingError


class TestGroups:
    def test_every_hyper_parameter_acts_per_group(self):
        values = {
            "lr": 0.03,
            "ess": 77.0,
            "weight_decay": 0.02,
            "hess_init": 0.9,
            "beta1": 0.5,
            "beta2": 0.8,
            "clip_radius": 0.4,
            "rescale_lr": False,
            "debias": False,
            "hess_approx": "gradsq",
            "grad_batch_size": 5,
            "seed": 9,
        }
        data = torch.randn(3, generator=torch.Generator().manual_seed(0))
        alone, grouped, other = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
        single = IVON([{"params": [alone]}], **values)
        both = IVON([{"params": [grouped], **values}, {"params": [other]}], lr=0.1, ess=10.0)
        for _ in range(4):
            for optimizer, params in ((single, [alone]), (both, [grouped, other])):
                optimizer.zero_grad()
                optimizer.train()
                sum((p - data).square().sum() for p in params).backward()
                optimizer.step()
        assert torch.equal(alone, grouped)
        assert not torch.allclose(grouped, other)

    def test_empty_groups_frozen_parameters_and_missing_gradients(self):
        used, unused, frozen = (torch.nn.Parameter(torch.ones(2)) for _ in range(3))
        frozen.requires_grad_(False)
        optimizer = IVON([{"params": [used, unused, frozen]}, {"params": []}], lr=0.1, ess=100.0)
        optimizer.train()
        assert torch.equal(frozen, torch.ones(2))
        used.square().sum().backward()
        optimizer.step()
        assert not torch.equal(used, torch.ones(2))
        assert torch.equal(unused, torch.ones(2)) and int(optimizer.state[unused]["step"]) == 0
        assert frozen not in optimizer.state

    def test_parameter_frozen_later_keeps_weights_written_by_others(self):
        param, other = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
        optimizer = IVON([param, other], lr=0.1, ess=100.0)
        for frozen in (False, True):
            param.requires_grad_(not frozen)
            with torch.no_grad():
                param.fill_(5.0 if frozen else 1.0)
            optimizer.zero_grad()
            optimizer.train()
            (param.sum() + other.square().sum()).backward()
            optimizer.step()
        assert torch.equal(param, torch.full((2,), 5.0))

    def test_add_param_group_at_any_time(self):
        model, optimizer = make()
        one_step(model, optimizer, 0)
        late = torch.nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [late], "ess": 50.0})
        optimizer.train()
        (late.square().sum() + loss_of(model, batch(1))).backward()
        optimizer.step()
        assert int(optimizer.state[late]["step"]) == 1 and not torch.equal(late, torch.ones(3))

    def test_group_added_while_a_draw_is_held_must_be_drawn_first(self):
        model, optimizer = make()
        optimizer.train()
        late = torch.nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [late]})
        loss = late.square().sum() + loss_of(model, batch(1))
        loss.backward()
        with pytest.raises(TrainingError, match="none was made"):
            optimizer.step()
        optimizer.train()
        assert not torch.equal(late, torch.ones(3))

    def test_prior_precision_wins_over_group_weight_decay(self):
        params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
        groups = [{"params": [params[0]], "weight_decay": 0.0}, {"params": [params[1]], "ess": 50.0}]
        optimizer = IVON(groups, lr=0.1, ess=200.0, prior_precision=10.0)
        assert [g["weight_decay"] for g in optimizer.param_groups] == [0.05, 0.2]
        with pytest.raises(ConfigError, match="not both"):
            IVON(params, lr=0.1, ess=1.0, prior_precision=1.0, weight_decay=1.0)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"lr": -1.0}, "lr must be >= 0"),
            ({"ess": 0.0}, "ess must be > 0"),
            ({"ess": float("nan")}, "ess must be > 0"),
            ({"beta1": 1.0}, r"beta1 must be in \[0, 1\)"),
            ({"beta2": -0.1}, r"beta2 must be in \[0, 1\)"),
            ({"clip_radius": 0.0}, "clip_radius must be > 0"),
            ({"weight_decay": -1e-4}, "weight_decay must be >= 0"),
            ({"hess_init": 0.0, "weight_decay": 0.0}, "infinitely wide"),
            ({"hess_approx": "fisher"}, "got 'fisher'"),
            ({"grad_batch_size": 4}, "no meaning for 'price'"),
            ({"grad_batch_size": 0, "hess_approx": "gradsq"}, "grad_batch_size must be > 0"),
            ({"mc_samples": 0}, "whole number"),
            ({"mc_samples": float("inf")}, "whole number"),
            ({"ess": "1e4"}, "ess must be > 0 and finite, got '1e4', which is no number but str"),
            ({"ess": True}, "got True, which is no number but bool"),
            ({"lr": None}, "lr must be >= 0 and finite, got None"),
            ({"hess_init": "a"}, "hess_init must be >= 0 and finite, got 'a'"),
            ({"prior_precision": -1.0}, "prior_precision must be >= 0"),
        ],
    )
    def test_impossible_values_are_refused(self, kwargs, message):
        with pytest.raises(ConfigError, match=message):
            make(**kwargs)

    def test_complex_and_sparse_are_refused(self):
        with pytest.raises(ConfigError, match="complex64"):
            IVON([torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))], lr=0.1, ess=10.0).train()
        table = torch.nn.Embedding(5, 2, sparse=True)
        optimizer = IVON(table.parameters(), lr=0.1, ess=10.0)
        before = table.weight.detach().clone()
        optimizer.train()
        table(torch.tensor([1])).sum().backward()
        with pytest.raises(TrainingError, match="sparse=False"):
            optimizer.step()
        assert torch.equal(table.weight, before)

    def test_lr_scheduler_and_hooks(self):
        model, optimizer = make()
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
        calls = []
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
        for step in range(4):
            one_step(model, optimizer, step)
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
        assert len(calls) == 4
