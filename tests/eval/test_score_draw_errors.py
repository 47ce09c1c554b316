"""The error of posterior draws in the areas of scores: a literal transcription, and what new sets of draws show."""

import numpy as np
import pytest
from test_results import DRAWS, log_softmax, make_model

from vlora.eval.comparisons import detect_groups
from vlora.eval.metrics.crossed import draw_weights
from vlora.eval.metrics.draw_temperature import fit_draw_temperature, temper_draws
from vlora.eval.metrics.ranking import auroc, average_precision, fpr_at_tpr
from vlora.eval.metrics.rejection import prediction_rejection_ratio
from vlora.eval.metrics.selective import aurc
from vlora.eval.metrics.temperature import fit_temperature, temper
from vlora.eval.metrics.uncertainty import entropy, mixture_log_probs, mutual_information, variation_ratio
from vlora.eval.predictions import ChoiceTable
from vlora.eval.records import Record
from vlora.eval.tables import Resampler
from vlora.eval.wrong_answers import find_wrong_answers

RESAMPLER = Resampler(60)
QUESTION = {"strange": {"positive": ["unknown"], "negative": ["easy", "hard"]}}


def table_of(rows, base=None):
    table = ChoiceTable(rows[0]["model"], [Record.from_dict(row) for row in rows], RESAMPLER)
    if base is not None:
        table.set_base(table_of(base))
    return table


@pytest.fixture(scope="module")
def rows():
    return make_model("ivon", 0.3, seed=2)


@pytest.fixture(scope="module")
def table(rows):
    return table_of(rows, base=make_model("base", 2.0, draws=0, seed=1))


def chosen(rows, *groups):
    return [number for number, row in enumerate(rows) if row["group"] in groups]


def resampled(rows, keep):
    """Draws of some rows, ``(S, N, K)``, once per resample, as the results draw them."""
    samples = np.array([row["sample_log_probs"] for row in rows]).swapaxes(0, 1)
    for weights in draw_weights(DRAWS, 40):
        copies = [samples[draw] for draw, w in enumerate(weights) for _ in range(round(w * DRAWS))]
        yield np.stack(copies)[:, keep], np.stack(copies)


def literal_error(values):
    """Standard deviation of the replicates, with what S draws with replacement lack."""
    return np.std(values, ddof=1) * (DRAWS / (DRAWS - 1)) ** 0.5


SCORES = {
    "max_probability": lambda s: -mixture_log_probs(s).max(1),
    "entropy": lambda s: entropy(mixture_log_probs(s)),
    "mutual_information": mutual_information,
    "variation_ratio": variation_ratio,
}


def test_wrong_answers_on_resampled_draws_are_those_of_the_metrics(rows, table):
    keep = chosen(rows, "easy", "hard")
    label = np.array([rows[i]["label"] for i in keep])
    length = np.array([float(rows[i]["num_tokens"]) for i in keep])
    found = {
        row["score"]: row for row in find_wrong_answers([table], RESAMPLER) if row["predictor"] == "samples"
    }
    areas: dict[str, list[list[float]]] = {name: [] for name in (*SCORES, "length")}
    for samples, _ in resampled(rows, keep):
        right = (mixture_log_probs(samples).argmax(1) == label).astype(float)
        values = {name: of(samples) for name, of in SCORES.items()} | {"length": length}
        base = auroc(values["max_probability"], 1 - right)
        for name, own in values.items():
            area = auroc(own, 1 - right)
            areas[name].append([area, aurc(own, right), prediction_rejection_ratio(own, right), area - base])
    for name, numbers in areas.items():
        for column, area in enumerate(("auroc", "aurc", "prr", "auroc_gain")):
            if area == "auroc_gain" and name == "max_probability":
                continue
            entry, wanted = found[name][area], literal_error(np.array(numbers)[:, column])
            assert entry["draw_error"] == pytest.approx(wanted, rel=1e-9), (name, area)
            assert entry["crossed_high"] - entry["crossed_low"] > 0 and entry["item_error"] > 0
    assert found["max_probability"]["auroc_gain"] is None


def test_detection_on_resampled_draws_is_that_of_the_metrics(rows, table):
    unknown, known = chosen(rows, "unknown"), chosen(rows, "easy", "hard")
    keep, positive = [*unknown, *known], np.repeat([1.0, 0.0], [len(unknown), len(known)])
    base = np.array(make_model("base", 2.0, draws=0, seed=1), dtype=object)[keep]
    ignorance = entropy(np.array([row["log_probs"] for row in base]))
    found = {
        row["score"]: row
        for row in detect_groups([table], QUESTION, RESAMPLER)
        if row["predictor"] == "samples"
    }
    wanted: dict[str, list[list[float]]] = {}
    for samples, _ in resampled(rows, keep):
        values = {name: of(samples) for name, of in SCORES.items()}
        values["mutual_information_times_base"] = values["mutual_information"] * ignorance
        for name, own in values.items():
            numbers = [auroc(own, positive), fpr_at_tpr(own, positive), average_precision(own, positive)]
            wanted.setdefault(name, []).append(numbers)
    for name, numbers in wanted.items():
        for column, area in enumerate(("auroc", "fpr95", "aupr")):
            error = found[name][area]["draw_error"]
            assert error == pytest.approx(literal_error(np.array(numbers)[:, column]), rel=1e-9), (name, area)
    assert found["entropy"]["aupr"]["chance"] == pytest.approx(len(unknown) / len(keep))


def test_a_tempered_score_has_the_temperature_of_its_resample(rows, table):
    keep, held_out = chosen(rows, "easy", "hard"), chosen(rows, "validation")
    label = np.array([rows[i]["label"] for i in keep])
    [found] = [
        row
        for row in find_wrong_answers([table], RESAMPLER)
        if (row["predictor"], row["score"]) == ("samples+temperature", "entropy")
    ]
    numbers = []
    for samples, everything in resampled(rows, keep):
        fitted = fit_temperature(
            mixture_log_probs(everything[:, held_out]), [rows[i]["label"] for i in held_out]
        )
        mixture = temper(mixture_log_probs(samples), fitted.temperature)
        numbers.append(auroc(entropy(mixture), mixture.argmax(1) != label))
    assert found["auroc"]["draw_error"] == pytest.approx(literal_error(numbers), rel=1e-6)


def test_a_score_of_tempered_draws_has_their_temperature_on_the_resample(rows, table):
    """Refitted literally; the temperature of a resample is read off a grid, so the error agrees to a few per cent."""
    keep, held_out = chosen(rows, "easy", "hard"), chosen(rows, "validation")
    label = np.array([rows[i]["label"] for i in keep])
    [found] = [
        row
        for row in find_wrong_answers([table], RESAMPLER)
        if (row["predictor"], row["score"]) == ("samples+draw_temperature", "mutual_information")
    ]
    numbers = []
    for samples, everything in resampled(rows, keep):
        fitted = fit_draw_temperature(everything[:, held_out], [rows[i]["label"] for i in held_out])
        tempered = temper_draws(samples, fitted.temperature)
        wrong = mixture_log_probs(tempered).argmax(1) != label
        numbers.append(auroc(mutual_information(tempered), wrong))
    assert found["auroc"]["draw_error"] == pytest.approx(literal_error(numbers), rel=0.03)


def test_what_has_no_draws_has_no_draw_error_and_one_pair_says_nothing(rows):
    pair = [row | {"sample_log_probs": row["sample_log_probs"][:2], "antithetic": True} for row in rows]
    table = table_of(pair)
    found = [*find_wrong_answers([table], RESAMPLER), *detect_groups([table], QUESTION, RESAMPLER)]
    for row in found:
        drawn = row["predictor"].startswith("samples")
        assert ("draw_error" in row["auroc"]) is drawn
        assert row["auroc"].get("draw_error") is None and row["auroc"].get("crossed_low") is None


def test_the_error_is_what_new_sets_of_draws_show():
    """Draws that scale all logits alike: the AUROC of their information moves as much as the error says."""
    rng, size, draws = np.random.default_rng(5), 80, 16
    base = rng.normal(size=(size, 3)) * np.repeat([1.0, 1.4], size // 2)[:, None]
    head = {"model": "m", "split": "test", "num_tokens": 1, "label": 0}

    def fresh():
        logits = base + 0.7 * rng.normal(size=(draws, 1, 3))
        samples = log_softmax(logits)
        return table_of(
            [
                head
                | {"item": str(i), "group": "ab"[i < size // 2], "log_probs": log_softmax(base[i]).tolist()}
                | {"sample_log_probs": samples[:, i].tolist()}
                for i in range(size)
            ]
        )

    def error(table):
        question = {"q": {"positive": ["a"], "negative": ["b"]}}
        rows = detect_groups([table], question, Resampler(2))
        [found] = [r for r in rows if (r["predictor"], r["score"]) == ("samples", "entropy")]
        return found["auroc"]["draw_error"]

    positive = np.arange(size) < size // 2
    values = [auroc(fresh().scores("samples")["entropy"], positive) for _ in range(100)]
    assert np.mean([error(fresh()) for _ in range(8)]) == pytest.approx(np.std(values), rel=0.35)


def test_no_question_asks_nothing_of_the_draws(table):
    assert detect_groups([table], {}, RESAMPLER) == []
