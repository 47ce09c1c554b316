"""The mode of weighted mixtures against the iteration written out, densities and closed forms; its preview."""

import json
import math
from dataclasses import replace

import pytest
import torch
from merge_cases import add_curvature, add_posterior, make_adapter, rand
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from vlora.config import load_config
from vlora.errors import ConfigError
from vlora.merge import MergeConfig, merge_adapters
from vlora.merge.adapters.reading import read_inputs
from vlora.merge.curvature.unit import normalised_gram
from vlora.merge.preview import preview
from vlora.merge.preview.build import build_model
from vlora.merge.preview.mixture import one_of_each, surrogate
from vlora.merge.preview.mode import mixture_mode, responsibilities, soft_minimum
from vlora.posterior import Posterior
from vlora.recipes.cli import main

TAU, SIZE = 0.3, 6
MEMBERS = [[0, 1, 2], [3, 4]]


def gaussians():
    """Precisions S = G + tau I and means of five components."""
    precisions = []
    for seed in range(5):
        x = rand(SIZE, SIZE, seed=seed)
        precisions.append(x @ x.mT / SIZE + TAU * torch.eye(SIZE, dtype=torch.float64))
    return precisions, [2.0 * rand(SIZE, seed=50 + seed) for seed in range(5)]


def dense_losses(precisions, means):
    """f and the prior's loss at the merge with given coefficients, one row after another."""
    prior = TAU * torch.eye(SIZE, dtype=torch.float64)

    def losses(coefficients):
        rows, priors = [], []
        for c in coefficients:
            total, pull = prior.clone(), torch.zeros(SIZE, dtype=torch.float64)
            for weight, s, m in zip(c, precisions, means, strict=True):
                total += weight.abs() * (s - prior)
                pull += weight * (s @ m)
            x = torch.linalg.solve(total, pull)
            signs = torch.where(c.signbit(), -1.0, 1.0)
            gaps = [x - sign * m for sign, m in zip(signs, means, strict=True)]
            rows.append(torch.stack([0.5 * g @ s @ g for g, s in zip(gaps, precisions, strict=True)]))
            priors.append(0.5 * TAU * x @ x)
        return torch.stack(rows), torch.stack(priors)

    return losses


def literal(precisions, means, weights, start, steps):
    """EM as the paper's principle gives it, with mass-proportional component weights written out; X of every step."""
    prior = TAU * torch.eye(SIZE, dtype=torch.float64)
    log_pi = [
        torch.log_softmax(torch.stack([-0.5 * torch.logdet(precisions[i]) for i in own]), 0)
        for own in MEMBERS
    ]
    r, path = start, []
    for _ in range(steps):
        c, pull = prior.clone(), torch.zeros(SIZE, dtype=torch.float64)
        for weight, own, share in zip(weights, MEMBERS, r, strict=True):
            c += weight * (sum(p * precisions[i] for p, i in zip(share, own, strict=True)) - prior)
            pull += weight * sum(p * precisions[i] @ means[i] for p, i in zip(share, own, strict=True))
        x = torch.linalg.solve(c, pull)
        path.append(x)
        r = []
        for own, log in zip(MEMBERS, log_pi, strict=True):
            scores = [
                log[k]
                + 0.5 * torch.logdet(precisions[i])
                - 0.5 * (x - means[i]) @ precisions[i] @ (x - means[i])
                for k, i in enumerate(own)
            ]
            r.append(torch.softmax(torch.stack(scores), 0).tolist())
    return path, r


def log_product(precisions, means, weights, x):
    """log of p_0 prod (q_g / p_0)^w from torch's densities."""
    zero = torch.zeros(SIZE, dtype=torch.float64)
    prior = MultivariateNormal(zero, precision_matrix=TAU * torch.eye(SIZE, dtype=torch.float64))
    total = prior.log_prob(x)
    for weight, own in zip(weights, MEMBERS, strict=True):
        masses = torch.stack([-0.5 * torch.logdet(precisions[i]) for i in own])
        parts = MultivariateNormal(
            torch.stack([means[i] for i in own]), precision_matrix=torch.stack([precisions[i] for i in own])
        )
        total = total + weight * (
            MixtureSameFamily(Categorical(logits=masses), parts).log_prob(x) - prior.log_prob(x)
        )
    return total


def starts():
    average = [[1 / len(own)] * len(own) for own in MEMBERS]
    found = [average]
    for g, own in enumerate(MEMBERS):
        found += [
            [*average[:g], [float(k == j) for k in range(len(own))], *average[g + 1 :]]
            for j in range(len(own))
        ]
    return found


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.4, 1.3), (0.2, 0.1)])
def test_the_mode_is_that_of_the_iteration_written_out(weights):
    precisions, means = gaussians()
    losses = dense_losses(precisions, means)
    mode = mixture_mode(losses, torch.tensor([weights], dtype=torch.float64), MEMBERS, [1.0, 1.0])
    ends = [literal(precisions, means, weights, start, 120) for start in starts()]
    values = [log_product(precisions, means, weights, path[-1]).item() for path, _ in ends]
    best = max(range(len(values)), key=values.__getitem__)
    shares = torch.tensor([w * p for w, share in zip(weights, ends[best][1], strict=True) for p in share])
    torch.testing.assert_close(mode.coefficients[0], shares.double(), atol=1e-5, rtol=1e-5)


def test_the_objective_is_minus_the_log_density_and_falls_in_every_step():
    precisions, means = gaussians()
    losses, weights = dense_losses(precisions, means), (0.8, 0.7)
    table = torch.tensor([weights], dtype=torch.float64)
    offsets = []
    for start in starts():
        path, _ = literal(precisions, means, weights, start, 30)
        values = [-log_product(precisions, means, weights, x).item() for x in path]
        assert all(later <= earlier + 1e-10 for earlier, later in zip(values, values[1:], strict=False))
        x = path[-1].clone().requires_grad_()
        (slope,) = torch.autograd.grad(log_product(precisions, means, weights, x), x)
        assert slope.abs().max() < 1e-3
        offsets.append(values[-1])
    mode = mixture_mode(losses, table, MEMBERS, [1.0, 1.0])
    f, prior = losses(mode.coefficients)
    by_hand = (1 - sum(weights)) * prior[0]
    for own, weight in zip(MEMBERS, weights, strict=True):
        by_hand = by_hand + weight * -torch.log(torch.exp(-f[0, own]).mean())
    assert mode.objective[0].item() == pytest.approx(by_hand.item())
    other = mixture_mode(
        losses, 1e-9 * table, MEMBERS, [1.0, 1.0]
    )  # X = 0 gives the constant between the two
    zero = torch.zeros(SIZE, dtype=torch.float64)
    f, prior = losses(torch.zeros(1, 5, dtype=torch.float64))
    at_zero = sum(
        w * -math.log(torch.exp(-f[0, own]).mean().item()) for own, w in zip(MEMBERS, weights, strict=True)
    )
    constant = -log_product(precisions, means, weights, zero).item() - at_zero
    assert min(offsets) == pytest.approx(mode.objective[0].item() + constant, abs=1e-6)
    assert other.objective[0].abs() < 1e-6


def test_a_negative_weight_is_the_negative_of_the_components():
    precisions, means = gaussians()
    turned = [*means[:3], *(-m for m in means[3:])]
    plus = mixture_mode(
        dense_losses(precisions, turned), torch.tensor([[1.0, 0.6]]).double(), MEMBERS, [0.5, 0.5]
    )
    minus = mixture_mode(
        dense_losses(precisions, means), torch.tensor([[1.0, -0.6]]).double(), MEMBERS, [0.5, 0.5]
    )
    torch.testing.assert_close(plus.coefficients.abs(), minus.coefficients.abs())
    assert plus.objective.item() == pytest.approx(minus.objective.item())


def test_one_component_or_no_limit_of_temperature_is_the_plain_weighting():
    precisions, means = gaussians()
    losses = dense_losses(precisions, means)
    table = rand(4, 5, seed=9).abs()
    single = mixture_mode(losses, table, [[i] for i in range(5)], [0.1] * 5)
    assert torch.equal(single.coefficients, table) and single.steps == 0
    hot = mixture_mode(losses, table[:, :2], MEMBERS, [math.inf, math.inf])
    torch.testing.assert_close(hot.coefficients[:, :3], table[:, :1].expand(4, 3) / 3)
    warm = mixture_mode(losses, table[:, :2], MEMBERS, [1e9, 1e9])
    torch.testing.assert_close(warm.coefficients, hot.coefficients, rtol=1e-6, atol=1e-8)


def test_many_weightings_at_once_are_the_single_ones():
    precisions, means = gaussians()
    losses, table = dense_losses(precisions, means), rand(6, 2, seed=3).abs()
    together = mixture_mode(losses, table, MEMBERS, [0.3, 2.0])
    for row, expected in zip(table, together.coefficients, strict=True):
        alone = mixture_mode(losses, row[None], MEMBERS, [0.3, 2.0])
        torch.testing.assert_close(alone.coefficients[0], expected)


def test_soft_minimum_and_shares_have_their_limits():
    losses = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    assert soft_minimum(losses, math.inf).item() == pytest.approx(7 / 3)
    assert soft_minimum(losses, 1e8).item() == pytest.approx(7 / 3)
    assert soft_minimum(losses, 1e-3).item() == pytest.approx(1.0, abs=0.002)
    assert responsibilities(losses, math.inf).tolist() == [[1 / 3] * 3]
    assert responsibilities(losses, 1e-3)[0, 0].item() == pytest.approx(1.0)
    assert one_of_each(MEMBERS, 5) == [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0]]
    assert one_of_each([[0], [1]], 2) == []


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """Three seeds of one task near each other, two of another."""
    root = tmp_path_factory.mktemp("mixture")
    found = []
    for number in range(5):
        plain = Posterior.from_pretrained(make_adapter(root / "plain" / str(number), 1 if number < 3 else 2))
        mean = {k: v + 0.2 * rand(*v.shape, seed=number).float() for k, v in plain.mean.items()}
        one = add_curvature(add_posterior(replace(plain, mean=mean), number + 1), 50 * number + 50)
        one.save_pretrained(root / str(number))
        found.append(one)
    return root, found


def configured(root, **settings):
    adapters = [{"path": str(root / str(i)), "group": "ab"[i > 2]} for i in range(5)]
    return load_config(MergeConfig, {"adapters": adapters, "output": str(root / "out"), **settings})


@pytest.mark.parametrize("method", ["task_arithmetic", "gradient_matching"])
def test_the_losses_of_the_iteration_are_those_of_the_merge_that_is_built(five, method):
    _, inputs = five
    tau = 0.3 if method == "gradient_matching" else None
    read = read_inputs(inputs, list("vwxyz"))
    model = build_model(read, list("aaabb"), tau=tau, mixture=0.05)
    assert model.plain is not None
    losses = surrogate(model.plain, model.cores, model.tau)
    coefficients = torch.tensor(
        [[0.5, 0.2, 0.3, 0.9, 0.4], [1, 0, 0, 1, 0], [0.6, 0.1, 0.2, -0.4, -0.3]]
    ).double()
    found, prior = losses(coefficients)
    for row, own, zero in zip(coefficients, found, prior, strict=True):
        kept = [i for i in range(5) if row[i] != 0]
        merged = merge_adapters(
            [inputs[i] for i in kept], weights=[row[i].item() for i in kept], method=method, rank="lossless"
        )
        built = read_inputs([merged], ["m"])
        for number in range(5):
            total, nothing = 0.0, 0.0
            for module in read.modules:
                update, x = read.update(number, module), built.update(0, module).delta()
                assert update.input_gram is not None
                metric = model.tau * torch.eye(x.shape[1], dtype=torch.float64)
                nothing += 0.5 * torch.trace(x @ metric @ x.mT).item()
                if tau is not None:
                    metric = metric + normalised_gram(update.input_gram, "here")
                gap = x - (-1 if row[number] < 0 else 1) * update.delta()
                total += 0.5 * torch.trace(gap @ metric @ gap.mT).item()
            assert own[number].item() == pytest.approx(total, rel=2e-2 if tau else 1e-5)
            assert zero.item() == pytest.approx(nothing, rel=2e-2 if tau else 1e-5)


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "gradient_matching"])
def test_a_hot_mixture_is_the_average_and_a_cold_one_takes_the_best_members(five, method):
    root, inputs = five
    config = configured(root, method=method)
    plain = preview(config, inputs, count=8)
    hot, cold = (preview(config, inputs, count=8, mixture=t) for t in (1e9, 1e-6))
    rows = len(plain.weights) - 2  # without the two that a search found
    torch.testing.assert_close(hot.increase[:rows], plain.increase[:rows], rtol=2e-3, atol=1e-5)
    assert cold.shares is not None and hot.shares is not None and plain.shares is None
    torch.testing.assert_close(cold.shares[:, :3].sum(1), cold.weights[:, 0])
    assert cold.shares[0].count_nonzero() <= 4 and hot.shares[0].count_nonzero() == 5
    assert sum(cold.row(0)["adapter_weights"].values()) == pytest.approx(
        cold.weights[0].sum().item(), rel=1e-4
    )
    single = (cold.weights == torch.tensor([1.0, 0.0], dtype=torch.float64)).all(1).nonzero()
    if len(single):  # one task alone at weight 1 is one of its adapters, which loses nothing
        assert cold.increase[single[0], 0].item() == pytest.approx(0.0, abs=1e-3)
        assert plain.increase[single[0], 0].item() > 0.01


def test_one_adapter_per_task_makes_the_same_numbers(five):
    root, inputs = five
    pair = [inputs[0], inputs[3]]
    read = read_inputs(pair, ["a", "b"])
    weights = rand(5, 2, seed=1).abs()
    for tau in (None, 0.3):
        plain, mixed = (build_model(read, ["a", "b"], tau=tau, mixture=t) for t in (math.inf, 0.01))
        for one, two in zip(plain.predict(weights), mixed.predict(weights), strict=True):
            assert (one is None) == (two is None)
            assert one is None or two is None or torch.equal(one, two)


@pytest.mark.parametrize(
    ("groups", "mixture", "message"),
    [
        ("ab", 0.0, "temperature > 0 .* got 0"),
        ("ab", -1.0, "got -1"),
        (None, 0.1, "several adapters of one task"),
    ],
)
def test_what_makes_no_mixture_is_refused(five, groups, mixture, message):
    root, inputs = five
    config = configured(root, method="task_arithmetic")
    if groups is None:
        config = replace(config, adapters=tuple(replace(s, group=None) for s in config.adapters))
    with pytest.raises(ConfigError, match=message):
        preview(config, inputs, count=4, mixture=mixture)


def test_an_adapter_without_a_module_counts_as_nothing_there(five):
    """Its component in that module is the prior: at mean 0 with precision tau."""
    _, inputs = five
    lacking = [
        replace(inputs[0], mean={k: v for k, v in inputs[0].mean.items() if ".0." not in k}),
        *inputs[1:],
    ]
    lacking[0] = replace(lacking[0], hess={k: v for k, v in lacking[0].hess.items() if ".0." not in k})
    read = read_inputs(lacking, list("vwxyz"))
    model = build_model(read, list("aaabb"), tau=0.3, mixture=0.05)
    assert model.plain is not None and any(len(core.adapters) == 4 for core in model.cores)
    zero = torch.zeros(1, 5, dtype=torch.float64)
    alone, prior = surrogate(model.plain, model.cores, model.tau)(zero)
    whole = build_model(read_inputs(inputs, list("vwxyz")), list("aaabb"), tau=0.3, mixture=0.05)
    assert whole.plain is not None
    full, _ = surrogate(whole.plain, whole.cores, whole.tau)(zero)
    assert alone[0, 0] < full[0, 0] and torch.allclose(alone[0, 1:], full[0, 1:]) and prior.item() == 0


def test_the_command_tells_the_weight_of_every_adapter(five, tmp_path, capsys):
    root, _ = five
    adapters = [{"path": str(root / str(i)), "group": "ab"[i > 2], "name": f"seed{i}"} for i in range(5)]
    config = {"method": "task_arithmetic", "adapters": adapters, "output": str(tmp_path / "m")}
    (tmp_path / "c.json").write_text(json.dumps(config))
    try:
        main(["merge", "preview", str(tmp_path / "c.json"), "--out", str(tmp_path / "p"), "--count", "16",
              "--mixture", "0.01"])  # fmt: skip
    except SystemExit as stop:
        assert not stop.code
    told = json.loads((tmp_path / "p.json").read_text())["named"]["best average"]["adapter_weights"]
    assert list(told) == [f"seed{i}" for i in range(5)]
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("best average: "))
    assert line == "best average: " + ", ".join(f"{name} {weight:.3g}" for name, weight in told.items())
    assert f"seed0 {told['seed0']:.3g}" in (tmp_path / "p.html").read_text()
