"""How every metric of ``results.json`` is called, which way is better, and what it is in one phrase.

This is the only place that knows; a metric that is not in it is shown under its own key, without a direction.
"""

from dataclasses import dataclass

__all__ = ["ANSWER_CONFIDENCE", "FAMILIES", "METRICS", "Metric", "metric"]

_PERCENT = "\N{NO-BREAK SPACE}%"


@dataclass(frozen=True)
class Metric:
    """Presentation of one metric.

    Attributes:
        key: Name in ``results.json``.
        label: Column head.
        direction: +1 higher is better, -1 lower is better, 0 neither.
        digits: Decimals shown.
        percent: Show a share as a percentage.
        hint: What it is, in one phrase.
    """

    key: str
    label: str
    direction: int = 0
    digits: int = 3
    percent: bool = False
    hint: str = ""

    @property
    def arrow(self) -> str:
        """Arrow in the better direction, or nothing."""
        return {1: "↑", -1: "↓"}.get(self.direction, "")

    @property
    def better(self) -> str:
        """The better direction in a word, or nothing."""
        return {1: "higher is better", -1: "lower is better"}.get(self.direction, "")


_PROPER = (
    Metric("accuracy", "Accuracy", 1, 1, True, "share of questions answered correctly"),
    Metric("perplexity", "Perplexity", -1, 2, False, "exp of the mean negative log-likelihood per token"),
    Metric("nll", "NLL", -1, 3, False, "mean negative log-probability of the right answer, in nats"),
    Metric("nll_sequence", "NLL of texts", -1, 3, False, "nats per token, one posterior draw per whole text"),
    Metric(
        "nll_expectation_of_products", "NLL, expectation of products", -1, 3, False,
        "the draws' mixture of whole strings: one posterior draw per string (texts: per token)",
    ),
    Metric(
        "nll_product_of_expectations", "NLL, product of expectations", -1, 3, False,
        "the draws' mixture token by token, multiplied over the string (texts: per token)",
    ),
    Metric(
        "accuracy_expectation_of_products", "Accuracy, expectation of products", 1, 1, True,
        "choosing by the draws' mixture of whole strings",
    ),
    Metric(
        "accuracy_product_of_expectations", "Accuracy, product of expectations", 1, 1, True,
        "choosing by the draws' mixture token by token",
    ),
    Metric("kl_to_truth", "KL to truth", -1, 3, False, "divergence from the known distribution of answers"),
    Metric("brier", "Brier", -1, 3, False, "squared error of the probabilities, summed over choices, 0 to 2"),
    Metric(
        "reliability_isotonic", "Brier part: miscalibration", -1, 4, False,
        "of (confidence - correct)², what the best non-decreasing recalibration would save (MCB)",
    ),
    Metric(
        "resolution_isotonic", "Brier part: resolution", 1, 4, False,
        "what the recalibrated confidence saves against always saying the accuracy (DSC)",
    ),
    Metric(
        "uncertainty_isotonic", "Brier part: spread of outcomes", 0, 4, False,
        "accuracy x (1 - accuracy); (confidence - correct)² = miscalibration - resolution + this",
    ),
)  # fmt: skip
_CALIBRATION = (
    Metric("ece_15_equal_width", "ECE", -1, 3, False, "calibration error, 15 bins of equal width"),
    Metric("smooth_ece", "Smooth ECE", -1, 3, False, "calibration error without bins, at its own bandwidth"),
    Metric("ece_15_equal_mass", "ECE, equal mass", -1, 3, False, "calibration error, 15 bins of equal count"),
    Metric("calibration_gap", "Calibration gap", 0, 3, False, "mean confidence minus accuracy: above 0 over-confident"),
    Metric("l2_15_equal_width", "L2 calibration error", -1, 3, False, "root mean square over 15 bins of equal width"),
    Metric(
        "debiased_l2_15_equal_width", "L2, debiased", -1, 3, False,
        "the same with the variance of the bins' accuracies taken off",
    ),
    Metric(
        "debiased_l1_15_equal_width", "ECE, debiased", -1, 3, False,
        "the ECE with what noise in the bins' accuracies adds taken off",
    ),
    Metric(
        "mce_15_equal_width", "Maximum error", -1, 3, False,
        "largest gap of a bin with at least 10 items, 15 bins of equal width",
    ),
    Metric(
        "classwise_ece_15_equal_width", "Class-wise ECE", -1, 3, False,
        "mean over classes of the ECE of one class against the rest, 15 bins of equal width",
    ),
    Metric("temperature", "Temperature", 0, 2, False, "fitted on the validation split"),
)  # fmt: skip
_SELECTIVE = (
    Metric("auroc_correctness", "AUROC", 1, 3, False, "chance that a right answer is the more confident one"),
    Metric("aurc", "AURC", -1, 3, False, "mean error rate over all coverages"),
    Metric("excess_aurc", "Excess AURC", -1, 3, False, "AURC above that of a perfect ordering"),
    Metric("augrc", "AUGRC", -1, 3, False, "mean over coverages of the share of items kept and wrong"),
    Metric("prediction_rejection_ratio", "PRR", 1, 3, False, "gain from rejecting the uncertain: 0 random, 1 perfect"),
    Metric("accuracy_at_80_coverage", f"Acc. at 80{_PERCENT}", 1, 1, True, "accuracy on the most confident 80 %"),
    Metric("accuracy_at_50_coverage", f"Acc. at 50{_PERCENT}", 1, 1, True, "accuracy on the most confident 50 %"),
    Metric("accuracy_at_90_coverage", f"Acc. at 90{_PERCENT}", 1, 1, True, "accuracy on the most confident 90 %"),
    Metric(
        "coverage_at_5_risk", f"Coverage at 5{_PERCENT} risk", 1, 1, True,
        "largest share answered with at most 5 % errors (last crossing), fitted on these items",
    ),
    Metric(
        "aupr_error", "AUPR of errors", 1, 3, False,
        "precision-recall area, wrong answers positive; chance is the error rate",
    ),
    Metric(
        "aupr_correct", "AUPR of right answers", 1, 3, False,
        "precision-recall area, right answers positive; chance is the accuracy",
    ),
    Metric("fpr95_error", "FPR95 of errors", -1, 3, False, "right answers flagged when 95 % of the wrong ones are"),
)  # fmt: skip
_UNCERTAINTY = (
    Metric("mean_confidence", "Mean confidence", 0, 1, True, "mean probability of the chosen answer"),
    Metric("confident_share", "Confident answers", 0, 1, True, "share of answers with probability above 0.5"),
    Metric("entropy", "Entropy", 0, 3, False, "predictive entropy in nats"),
    Metric("expected_entropy", "Expected entropy", 0, 3, False, "aleatoric part of the entropy, in nats"),
    Metric("mutual_information", "Mutual information", 0, 3, False, "epistemic part of the entropy, in nats"),
    Metric(
        "reverse_mutual_information", "Reverse mutual information", 0, 3, False,
        "mean divergence of the draws' mixture from the draws, in nats",
    ),
    Metric(
        "expected_pairwise_kl", "Divergence between draws", 0, 3, False,
        "mean over pairs of draws, in nats: mutual plus reverse mutual information",
    ),
    Metric("variation_ratio", "Variation ratio", 0, 3, False, "share of draws off the majority's answer"),
    Metric("disagreement", "Disagreement", 0, 3, False, "chance that two draws answer differently"),
    Metric(
        "chosen_std", "SD of the confidence", 0, 3, False, "over draws, of the chosen answer's probability"
    ),
    Metric(
        "kl_from_mean",
        "KL from the mean",
        0,
        4,
        False,
        "divergence of the draws' mixture from the prediction at the mean, in nats: near 0, sampling does nothing",
    ),
)  # fmt: skip

FAMILIES = {
    "Proper scores": _PROPER,
    "Calibration of the confidence": _CALIBRATION,
    "Knowing when it is wrong": _SELECTIVE,
    "Measures of uncertainty": _UNCERTAINTY,
}
"""Metrics by what they ask, in the order of the report."""

_ANSWERS = (
    Metric("correct", "Right", 1, 1, True, "share of questions answered correctly"),
    Metric("incorrect", "Wrong", -1, 1, True, "share of questions answered wrongly; declining is neither"),
    Metric("not_attempted", "Declined", 0, 1, True, "share of questions that got no answer"),
    Metric(
        "accuracy_given_attempted", "Right among attempts", 1, 1, True, "share of the attempts that are right"
    ),
    Metric("f_score", "F", 1, 3, False, "harmonic mean of the two shares of right answers, as in SimpleQA"),
    Metric("penalised_score", "Penalised score", 1, 3, False, "right +1, wrong -t/(1-t), declined 0"),
    Metric("penalised_confidence", "Penalised score", 1, 3, False, "the same when answering only above t"),
    Metric("brier_confidence", "Brier", -1, 3, False, "squared error of the confidence, 0 to 1"),
)
"""Of generated and given answers; they have no place in the tables of choices."""
ANSWER_CONFIDENCE = {"penalised_score": "penalised_confidence", "brier": "brier_confidence"}
"""Metric of a confidence in an answer -> its presentation."""

METRICS = {metric.key: metric for family in (*FAMILIES.values(), _ANSWERS) for metric in family}
"""All metrics by key."""


def metric(key: str) -> Metric:
    """Return the presentation of ``key``; an unknown metric is shown under its key."""
    return METRICS.get(key) or Metric(key, key.replace("_", " "))
