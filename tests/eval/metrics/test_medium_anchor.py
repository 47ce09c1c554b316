"""One medium data set whose numbers were computed with four independent packages: regenerate and compare."""

import numpy as np
import pytest

from vlora.eval.metrics.calibration import calibration, debiased_l2
from vlora.eval.metrics.classwise import marginal_debiased_l2
from vlora.eval.metrics.compat import mass_bins, trapezoid_augrc, trapezoid_aurc
from vlora.eval.metrics.proper_scores import brier_score, correctness, negative_log_likelihood
from vlora.eval.metrics.ranking import auroc, average_precision
from vlora.eval.metrics.selective import augrc, aurc, excess_aurc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import (
    entropy,
    expected_entropy,
    mixture_log_probs,
    mutual_information,
    variation_ratio,
)


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.fixture(scope="module")
def anchor():
    """Logits exactly twice too large, so the fitted temperature should be about 2; then eight noisy draws."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2000, 4)) * 1.5
    label = np.array([rng.choice(4, p=np.exp(log_softmax(row))) for row in truth])
    draws = log_softmax(2 * truth + 0.8 * rng.normal(size=(8, 2000, 4)))
    return log_softmax(2 * truth), label, draws


def digits(value):
    return pytest.approx(value, abs=6e-7)


def test_accuracy_confidence_and_proper_scores(anchor):
    log_probs, label, _ = anchor
    assert correctness(log_probs, label).mean() == digits(0.6215)
    assert np.exp(log_probs.max(1)).mean() == digits(0.781067)
    assert brier_score(log_probs, label).mean() == digits(0.545691)
    assert negative_log_likelihood(log_probs, label).mean == digits(1.058323)


def test_calibration_errors(anchor):
    log_probs, label, _ = anchor
    confidence, correct = np.exp(log_probs.max(1)), correctness(log_probs, label)
    width, mass = calibration(confidence, correct), calibration(confidence, correct, scheme="equal_mass")
    assert width.ece == digits(0.160630)
    assert calibration(confidence, correct, 10).ece == digits(0.160707)
    assert mass.ece == digits(0.159567)
    assert calibration(confidence, correct, 10, "equal_mass").ece == digits(0.159567)
    assert width.error(2) == digits(0.172022)
    assert width.maximum_error(min_count=1) == digits(0.354381)
    # 2000 items in 15 bins: the other package puts the larger bins first, ours spreads them.
    assert mass.error(2) == pytest.approx(0.173260, abs=1e-4)
    assert debiased_l2(mass) == pytest.approx(0.168575, abs=1e-4)
    assert marginal_debiased_l2(log_probs, label) == pytest.approx(0.099497, abs=4e-4)


def test_debiased_errors_in_the_bins_of_the_other_package(anchor):
    log_probs, label, _ = anchor
    bins = mass_bins(np.exp(log_probs.max(1)), correctness(log_probs, label))
    assert bins.error(2) == digits(0.173260) and debiased_l2(bins) == digits(0.168575)
    classes = [debiased_l2(mass_bins(np.exp(log_probs[:, k]), label == k)) for k in range(4)]
    assert np.mean(np.square(classes)) ** 0.5 == digits(0.099497)


def test_ranking_and_selective_metrics(anchor):
    log_probs, label, _ = anchor
    uncertainty, correct = -log_probs.max(1), correctness(log_probs, label)
    assert auroc(uncertainty, 1 - correct) == digits(0.683655)
    assert average_precision(-uncertainty, correct) == digits(0.787563)
    assert average_precision(uncertainty, 1 - correct) == digits(0.530364)
    assert aurc(uncertainty, correct) == digits(0.236666)
    assert excess_aurc(uncertainty, correct) == digits(0.153669)
    assert augrc(uncertainty, correct) == digits(0.146142)  # the plain mean
    assert trapezoid_augrc(uncertainty, correct) == digits(0.146120)
    assert trapezoid_aurc(uncertainty, correct) == digits(0.236690)


def test_temperature_undoes_the_overconfidence(anchor):
    log_probs, label, _ = anchor
    fit = fit_temperature(log_probs, label)
    assert fit.temperature == pytest.approx(1.9489, abs=5e-5) and not fit.at_bound
    assert fit.nll == pytest.approx(0.904766, abs=1e-6)
    tempered = temper(log_probs, fit.temperature)
    after = calibration(np.exp(tempered.max(1)), correctness(tempered, label))
    assert after.ece == pytest.approx(0.029977, abs=2e-6)  # the published T has five digits


def test_split_of_the_entropy(anchor):
    *_, draws = anchor
    assert entropy(mixture_log_probs(draws)).mean() == digits(0.612791)
    assert expected_entropy(draws).mean() == digits(0.536061)
    assert mutual_information(draws, corrected=False).mean() == digits(0.076730)
    assert variation_ratio(draws).mean() == digits(0.129875)
