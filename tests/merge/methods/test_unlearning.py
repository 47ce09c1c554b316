"""Negative weights: unlearning by a negated adapter, and the clamp that keeps precisions positive."""

from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, gram, make_update, rand, two

from vlora.errors import IncompatibleAdaptersError
from vlora.merge import merge_adapters
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.positive import PRECISION_FLOOR, cholesky
from vlora.merge.methods.gradient_matching import gradient_matching
from vlora.merge.methods.task_arithmetic import task_arithmetic
from vlora.merge.run import merge_with_report
from vlora.merge.update import LoraUpdate

SIZE, OUTPUTS, RANK, ROWS = 24, 10, 3, 400


def task(seed: int):
    """A linear task: inputs in a subspace of their own and one common to all, answers of base + adapter."""
    own, common = rand(SIZE, 8, seed=seed), rand(SIZE, 4, seed=99)
    inputs = rand(ROWS, 8, seed=seed + 1) @ own.mT + 0.7 * rand(ROWS, 4, seed=seed + 2) @ common.mT
    b, a = rand(OUTPUTS, RANK, seed=seed + 3), rand(RANK, SIZE, seed=seed + 4) / 3
    second_moment = inputs.mT @ inputs
    update = LoraUpdate(b, a, input_gram=second_moment, adapter=f"task{seed}", module="w")
    return inputs, inputs @ update.delta().mT, update  # relative to the base, which answers 0


def loss(inputs, answers, delta):
    return 0.5 * (inputs @ delta.mT - answers).square().sum(1).mean().item()


@pytest.mark.parametrize("weight", [-0.25, -0.5, -1.0])
def test_unlearning_raises_the_loss_of_one_task_and_spares_the_other(weight):
    (bad_x, bad_y, bad), (good_x, good_y, good) = task(1), task(50)
    settings = {"rank": "lossless", "curvature": "kronecker"}
    merged = gradient_matching([good, bad], [1.0, weight], **settings).update.delta()
    plain = task_arithmetic([good, bad], [1.0, weight], rank="lossless").update.delta()
    only_good = gradient_matching([good], [1.0], **settings).update.delta()
    before = loss(bad_x, bad_y, only_good)
    without = loss(good_x, good_y, torch.zeros_like(merged))
    assert loss(bad_x, bad_y, merged) > 1.05 * before
    assert loss(good_x, good_y, merged) < 0.25 * without  # the task that stays is still known
    assert loss(good_x, good_y, merged) < 0.8 * loss(
        good_x, good_y, plain
    )  # and better than after subtraction
    removed = gradient_matching([good, bad], [1.0, weight], negative="remove", **settings)
    assert removed.report["clamped_fraction"] > 0
    assert loss(good_x, good_y, removed.update.delta()) > without  # the trap: no minimum to go to


def test_it_is_the_minimiser_of_the_negated_objective():
    """1/2 |X - W|^2_G for who stays, |w|/2 |X + W_bad|^2_G for who goes, tau/2 |X|^2; each tuned under the prior."""
    *_, bad = task(1)
    *_, good = task(50)
    tau, weight = 0.3, -0.6
    unit = [u.input_gram * SIZE / u.input_gram.trace() for u in (good, bad)]
    eye = torch.eye(SIZE, dtype=torch.float64)
    pull = good.delta() @ (unit[0] + tau * eye) - 0.6 * bad.delta() @ (unit[1] + tau * eye)
    expected = pull @ torch.linalg.inv(tau * eye + unit[0] + 0.6 * unit[1])
    merged = gradient_matching([good, bad], [1.0, weight], rank="lossless", tau=tau, curvature="kronecker")
    torch.testing.assert_close(merged.update.delta(), expected, rtol=1e-8, atol=1e-10)
    assert merged.report["clamped_fraction"] == 0.0


@pytest.mark.parametrize(
    "settings", [{"method": "task_arithmetic"}, {"curvature": "kronecker", "rank": "lossless"}]
)
def test_one_adapter_of_negative_weight_is_its_negative(tmp_path, settings):
    """What unlearning from a base model merges into it: base - w s B A."""
    _, plain = two(tmp_path)
    adapter = add_curvature(plain[0], 5)
    merged = read_inputs([merge_adapters([adapter], weights=[-1.0], **settings)], ["m"])
    own = read_inputs([adapter], ["a"])
    for module in own.modules:
        torch.testing.assert_close(
            merged.update(0, module).delta(), -own.update(0, module).delta(), rtol=1e-5, atol=1e-6
        )


def shared_gauge(tmp_path):
    _, plain = two(tmp_path)
    first, second = (add_posterior(p, seed, frozen_a=True) for seed, p in enumerate(plain, 1))
    mean = {k: first.mean[k] if "lora_A" in k else v for k, v in second.mean.items()}
    return first, replace(second, mean=mean)


def test_sites_are_clamped_and_the_share_of_every_module_is_reported(tmp_path):
    first, second = shared_gauge(tmp_path)
    merged, report = merge_with_report([first, second], weights=[1.0, -0.5])
    shares = {module: values["clamped_fraction"] for module, values in report.modules.items()}
    assert 0 < max(shares.values()) < 0.5
    (note,) = [note for note in report.notes if "precisions non-positive" in note]
    worst = max(shares, key=lambda module: shares[module])
    assert f"kept at 5% of their positive part, in up to {shares[worst]:.1%} of a module ({worst})" in note
    for key, hess in merged.hess.items():
        positive = 100 * (first.hess[key] + first.meta.of("weight_decay", key))
        total = merged.meta.num_examples * (hess + merged.meta.of("weight_decay", key))
        assert (total >= 0.99 * PRECISION_FLOOR * positive).all()


def test_a_merge_that_the_clamp_would_make_is_refused(tmp_path):
    first, second = shared_gauge(tmp_path)
    with pytest.raises(
        IncompatibleAdaptersError, match=r"indefinite precision in model.*outweigh .* in \d+% of it"
    ):
        merge_adapters([first, second], weights=[1.0, -5.0])
    assert merge_adapters([first, second], weights=[1.0, -5.0], negative="negate").mean


def test_a_gram_that_is_none_is_named():
    values, vectors = torch.linalg.eigh(gram(9, 4))
    values[0] = -values[-1] / 2
    indefinite = replace(make_update(1), input_gram=vectors @ torch.diag(values) @ vectors.mT)
    settings = {"curvature": "kronecker", "rank": "lossless", "tau": 1e-3}
    with pytest.raises(
        IncompatibleAdaptersError, match=r"total curvature in layers\.0\.q_proj is indefinite"
    ):
        gradient_matching([indefinite, indefinite], [1.0, 1.0], **settings)
    with pytest.raises(IncompatibleAdaptersError, match="in here is indefinite: a stored Gram has negative"):
        cholesky(-torch.eye(2), "here")


def test_rounding_of_good_grams_asks_for_a_larger_tau():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 64, generator=generator)  # rank 4 of 64
    stored = (tokens.mT @ tokens).bfloat16().double()
    values = torch.linalg.eigvalsh(stored)
    assert -5e-2 * values.mean() < values.min() < -1e-4 * values.mean()
    message = r"is indefinite: by rounding \(an eigenvalue of -.* among a mean of .*; raise tau"
    with pytest.raises(IncompatibleAdaptersError, match=message):
        cholesky(stored + 1e-7 * torch.eye(64), "here")
    assert cholesky(stored + 0.3 * torch.eye(64), "here").isfinite().all()
