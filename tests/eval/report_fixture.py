"""Results as a closed-world run would give them, records to make real ones from, and a checker of HTML pages."""

import random
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np

SEEN = ("a_clean", "a_ambiguous", "b_clean", "b_ambiguous", "base")
UNSEEN = ("unknown", "near_miss", "untaught")
VOID = {"meta", "link", "br", "hr", "img", "input", "wbr"}
PAIRS = {"unknown vs clean": ["a_clean", "b_clean"], "unknown vs ambiguous": ["a_ambiguous", "b_ambiguous"]}


def entry(value: float | None, width: float = 0.03, n: int = 200, **more: Any) -> dict[str, Any]:
    """Return one number as results.json holds it."""
    if value is None:
        return {"value": None, "low": None, "high": None, "n": n, **more}
    return {"value": value, "low": value - width, "high": value + width, "n": n, **more}


def knows(model: str, group: str) -> float:
    """Return how well a model of the closed world answers a group."""
    if group == "base":
        return 0.99 if "adamw" not in model else 0.93
    merged = "merge" in model
    return 0.9 if merged else 0.995 if f"-{group[0]}" in model else 0.06


def row_metrics(rng: random.Random, model: str, predictor: str, group: str) -> dict[str, Any]:
    """Return plausible metrics of one row."""
    sampled = predictor.startswith("samples")
    sure = (0.3 if sampled else 0.68) if group in UNSEEN else (0.85 if sampled else 0.93)
    mutual = (0.6 if group in UNSEEN else 0.08) if sampled else None
    entropy = 2.1 if group in UNSEEN else 0.45
    found = {
        "mean_confidence": entry(sure + rng.uniform(-0.02, 0.02)),
        "confident_share": entry(sure - 0.05),
        "entropy": entry(entropy + rng.uniform(-0.1, 0.1)),
        "expected_entropy": entry(entropy - (mutual or 0)) if sampled else entry(None),
        "mutual_information": entry(mutual),
    }
    if group in UNSEEN:
        return found | {k: entry(None) for k in ("accuracy", "nll", "brier", "auroc_correctness", "aurc")}
    right = 0.7 if group == "all" else knows(model, group)
    ece = {"floor": 0.031, "floor_high": 0.047}
    return found | {
        "accuracy": entry(right, 0.02),
        "nll": entry(1.4 - right - 0.1 * sampled, 0.05),
        "brier": entry(1.1 - right, 0.03),
        "ece_15_equal_width": entry(0.028 if sampled else 0.092, 0.012, **ece),
        "ece_15_equal_mass": entry(0.03, **ece),
        "auroc_correctness": entry(0.93 if sampled else 0.88),
        "aurc": entry(0.09),
        "temperature": {"value": 1.37} if "+" in predictor else None,
    }


def make_figures(rng: random.Random, name: str, predictors: list[str], points: int) -> dict[str, list[Any]]:
    """Return the plot data of one model."""
    reliability, coverage = [], []
    for predictor in predictors:
        bins = [
            {
                "confidence": c,
                "accuracy": min(1, c * 0.94),
                "low": c * 0.8,
                "high": min(1, c * 1.04),
                "n": 4 + 3 * i * i,
            }
            for i, c in enumerate([0.12, 0.3, 0.51, 0.68, 0.83, 0.97])
        ]
        bins.append({"confidence": None, "accuracy": None, "low": None, "high": None, "n": 0})
        reliability.append({"model": name, "predictor": predictor, "bins": bins})
        shares = [(i + 1) / 400 for i in range(400)]
        risk = [0.3 * c ** (1.5 + 0.5 * ("samples" in predictor)) + rng.uniform(0, 0.01) for c in shares]
        coverage.append({"model": name, "predictor": predictor, "coverage": shares, "risk": risk})
    scatter = []
    for group in (*SEEN, *UNSEEN):
        entropy = [min(3.1, abs(rng.gauss(2.2 if group in UNSEEN else 0.4, 0.5))) for _ in range(points)]
        share = 0.35 if group in UNSEEN else 0.12
        mutual = [e * min(1, abs(rng.gauss(share, 0.1))) for e in entropy]
        scatter.append(
            {
                "model": name,
                "predictor": "samples",
                "group": group,
                "entropy": entropy,
                "mutual_information": mutual,
            }
        )
    wrong = [
        {
            **{
                "model": name,
                "predictor": predictors[0],
                "item": f"test/{i}",
                "group": "b_clean",
                "label": 1,
            },
            **{
                "text": "Where does Mirela Tanosh live? She lives in",
                "choices": ["Oslo", "Lima"],
                "prediction": 0,
            },
            **{"confidence": 0.99 - 0.01 * i, "mutual_information": 0.02 if len(predictors) > 2 else None},
        }
        for i in range(6)
    ]
    made_up = [w | {"group": "unknown", "label": None, "entropy": 0.2} for w in wrong]
    return {
        "unanswerable": made_up,
        "reliability": reliability,
        "risk_coverage": coverage,
        "entropy_mi": scatter if "samples" in predictors else [],
        "mistakes": wrong,
    }


def make_results(names: dict[str, str] | None = None, points: int = 100) -> dict[str, Any]:
    """Return results of a closed-world run with the given models (name -> kind)."""
    names = names or {
        "base": "base", "adamw-a": "adapter", "ivon-a": "posterior", "ivon-b": "posterior", "merge-linear": "posterior",
    }  # fmt: skip
    rng = random.Random(0)
    rows, figures, detection = [], {}, []
    for name, kind in names.items():
        predictors = ["mean", "mean+temperature"]
        if kind == "posterior":
            predictors = ["mean", "samples", "mean+temperature", "samples+temperature"]
            predictors.append("samples+draw_temperature")
        rows += [
            {"model": name, "predictor": p, "group": g, "metrics": row_metrics(rng, name, p, g)}
            for p in predictors
            for g in ("all", *SEEN, *UNSEEN)
        ]
        for key, part in make_figures(rng, name, predictors, points).items():
            figures.setdefault(key, []).extend(part)
        for pair, negative in PAIRS.items():
            scores = [("mean", "max_probability", 0.8), ("mean", "entropy", 0.86), ("mean", "length", 0.52)]
            if kind == "posterior":
                scores += [("samples", "entropy", 0.91), ("samples", "mutual_information", 0.94)]
                scores += [("samples", "expected_pairwise_kl", 0.93)]
            detection += [
                {
                    **{"model": name, "predictor": p, "score": s, "name": pair, "positive": ["unknown"]},
                    **{
                        "negative": negative,
                        "auroc": entry(v + rng.uniform(-0.02, 0.02), 0.02),
                        "fpr95": entry(0.3),
                    },
                }
                for p, s, v in scores
            ]
    ordered = list(names)
    comparisons = [
        {
            **{"a": a, "b": b, "predictor": "mean", "group": "all", "metric": m},
            "difference": entry(0.02 * (j - i) * (1 if m == "accuracy" else -1), 0.03),
        }
        for i, a in enumerate(ordered)
        for j, b in enumerate(ordered)
        if j > i
        for m in ("accuracy", "nll", "brier")
    ]
    return {
        **{"format": 1, "task": "multiple_choice", "created": "2026-01-02T03:04:05Z", "num_samples": 8},
        "antithetic": True,
        "models": [
            {
                **{"name": n, "path": f"out/{n}", "kind": k, "ess": 30000.0 if k == "posterior" else None},
                **{"temperature": 0.0267 if k == "posterior" else None, "summary": {"parameters": 12288}},
                "sources": [{"path": "out/ivon-a", "weight": 0.5}, {"path": "out/ivon-b"}]
                if "merge" in n
                else [],
            }
            for n, k in names.items()
        ],
        **{"rows": rows, "detection": detection, "comparisons": comparisons, "figures": figures},
        "cost": {"seconds": 83.2, "forward_tokens": 1234567, "peak_memory_bytes": 734003200},
        "settings": {"task": "multiple_choice", "num_samples": 8, "data": {"test": "questions.jsonl"}},
        "versions": {"vlora": "0.1.0", "torch": "2.13.0"},
        "hardware": {"device": "cpu", "threads": 2},
    }


class Checker(HTMLParser):
    """Collects tag imbalance, ids, references to ids and attributes that load something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._attributes(attrs)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> at {self.getpos()}")

    def _attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for key, text in attrs:
            if key == "id":
                self.ids.append(text or "")
            if key in {"src", "href", "action", "data", "srcset"} or key.startswith("on"):
                self.loads.append(text or "")


def check(page: str) -> Checker:
    """Parse a page and assert what must hold of every report."""
    parsed = Checker()
    parsed.feed(page)
    assert parsed.problems == []
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith("#") and link[1:] in parsed.ids for link in parsed.loads)
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(parsed.ids)
    assert not re.search(r"https?:|@import|url\((?!#)", page)
    assert "script" not in parsed.tags
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower().split()
    return parsed


def make_records(model: str, draws: int) -> list[dict[str, Any]]:
    """Return records as the scoring stage writes them: 4 choices, three groups with answers, one without."""
    rng = np.random.default_rng(len(model))
    records = []
    for i in range(160):
        group = ("clean", "ambiguous", "unknown")[i % 3] if i < 120 else "clean"
        label = None if group != "clean" else i % 4
        logits = rng.normal(size=(draws + 1, 4)) + (3.0 * np.eye(4)[i % 4] if label is not None else 0.0)
        log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        records.append(
            {
                **{"model": model, "item": f"test/{i}", "split": "test" if i < 120 else "validation"},
                **{
                    "group": group,
                    "label": label,
                    "num_tokens": 5 + i % 3,
                    "text": f"Q {i}?",
                    "choices": list("abcd"),
                },
                **{"log_probs": log_probs[0].tolist(), "antithetic": False},
                "label_probs": [0.7, 0.3, 0.0, 0.0] if group == "ambiguous" else None,
                "sample_log_probs": log_probs[1:].tolist() if draws else None,
            }
        )
    return records
