"""What the tables are about: predictors, their metrics, and which are compared."""

__all__ = ["FOREIGN_BASELINES", "INFORMATION", "METRICS", "NOISY", "PAIRS", "ROWS"]

NOISY = ("sst2", "imdb_cf_orig", "fdu_books", "fdu_kitchen_housewares", "fdu_music", "fdu_software")
ROWS: dict[str, tuple[str, str, str]] = {
    "AdamW": ("adamw", "mean", "raw"),
    "AdamW + temperature": ("adamw", "mean", "tempered"),
    "AdamW at IVON's rate": ("adamw_same", "mean", "raw"),
    "AdamW at IVON's rate + temperature": ("adamw_same", "mean", "tempered"),
    "MC dropout, 8": ("adamw", "dropout", "raw"),
    "MC dropout, 8 + temperature": ("adamw", "dropout", "tempered"),
    "diagonal Laplace, 8": ("adamw", "laplace", "raw"),
    "diagonal Laplace, 8 + temperature": ("adamw", "laplace", "tempered"),
    "Laplace, linearised": ("adamw_laplace", "linearised", "raw"),
    "Laplace, linearised, Kronecker": ("adamw_laplace", "kronecker", "raw"),
    "MC dropout, 8 at IVON's rate": ("adamw_same", "dropout", "raw"),
    "MC dropout, 8 at IVON's rate + temperature": ("adamw_same", "dropout", "tempered"),
    "diagonal Laplace, 8 at IVON's rate": ("adamw_same", "laplace", "raw"),
    "diagonal Laplace, 8 at IVON's rate + temperature": ("adamw_same", "laplace", "tempered"),
    "Laplace, linearised at IVON's rate": ("adamw_same_laplace", "linearised", "raw"),
    "Laplace, linearised, Kronecker at IVON's rate": ("adamw_same_laplace", "kronecker", "raw"),
    "IVON published, mean": ("ivon_published", "mean", "raw"),
    "IVON published, 8 draws": ("ivon_published", "draws", "raw"),
    "IVON auto, mean": ("ivon_auto", "mean", "raw"),
    "IVON auto, mean + temperature": ("ivon_auto", "mean", "tempered"),
    "IVON auto, 8 draws": ("ivon_auto", "draws", "raw"),
    "IVON auto, 8 draws, fitted width": ("ivon_auto", "scaled", "raw"),
    "IVON auto, 8 draws + temperature": ("ivon_auto", "draws", "tempered"),
    "IVON auto, 8 draws, fitted width + temperature": ("ivon_auto", "scaled", "tempered"),
    "IVON auto, noise .03, mean": ("ivon_wide", "mean", "raw"),
    "IVON auto, noise .03, 8 draws": ("ivon_wide", "draws", "raw"),
    "IVON auto, noise .03, 8 draws + temperature": ("ivon_wide", "draws", "tempered"),
    "IVON auto, linearised": ("ivon_auto", "linearised", "raw"),
    "IVON auto, linearised, Kronecker": ("ivon_auto", "kronecker", "raw"),
    "IVON auto, linearised, Kronecker + temperature": ("ivon_auto", "kronecker", "tempered"),
    "ensemble of 4 AdamW (4 × the cost)": ("adamw_ensemble", "mean", "raw"),
    "ensemble of 4 AdamW + temperature": ("adamw_ensemble", "mean", "tempered"),
    "ensemble of 4 AdamW at IVON's rate (4 × the cost)": ("adamw_same_ensemble", "mean", "raw"),
    "ensemble of 4 AdamW at IVON's rate + temperature": ("adamw_same_ensemble", "mean", "tempered"),
    "mixture of 4 IVON posteriors (4 × the cost)": ("ivon_ensemble", "mean", "raw"),
    "mixture of 4 IVON posteriors + temperature": ("ivon_ensemble", "mean", "tempered"),
}
"""Row of the tables -> arm, predictor, raw or tempered."""
METRICS = {
    "accuracy, %": ("accuracy", 100.0, 1), "NLL": ("nll", 1.0, 3), "ECE": ("ece", 1.0, 3),
    "floor": ("ece_floor", 1.0, 3), "Brier": ("brier", 1.0, 3), "AUROC correct": ("auroc_correct", 1.0, 3),
    "AURC": ("aurc", 1.0, 3), "foreign, entropy": ("foreign_auroc_entropy", 1.0, 3),
    "foreign, information": ("foreign_auroc_mutual_information", 1.0, 3),
}  # fmt: skip
PAIRS = {
    "IVON auto mean − AdamW": ("IVON auto, mean", "AdamW"),
    "IVON auto mean − AdamW at the same rate": ("IVON auto, mean", "AdamW at IVON's rate"),
    "IVON auto draws − AdamW": ("IVON auto, 8 draws", "AdamW"),
    "IVON auto draws − AdamW at the same rate": ("IVON auto, 8 draws", "AdamW at IVON's rate"),
    "IVON auto draws − AdamW at the same rate + temperature": (
        "IVON auto, 8 draws",
        "AdamW at IVON's rate + temperature",
    ),
    "IVON auto draws + temperature − AdamW at the same rate + temperature": (
        "IVON auto, 8 draws + temperature",
        "AdamW at IVON's rate + temperature",
    ),
    "IVON auto draws − AdamW + temperature": ("IVON auto, 8 draws", "AdamW + temperature"),
    "IVON auto draws + temperature − AdamW + temperature": (
        "IVON auto, 8 draws + temperature",
        "AdamW + temperature",
    ),
    "IVON auto, noise .03, mean − AdamW": ("IVON auto, noise .03, mean", "AdamW"),
    "IVON auto, noise .03, draws − AdamW": ("IVON auto, noise .03, 8 draws", "AdamW"),
    "IVON auto, noise .03, draws + temperature − AdamW + temperature": (
        "IVON auto, noise .03, 8 draws + temperature",
        "AdamW + temperature",
    ),
    "IVON auto fitted width − AdamW": ("IVON auto, 8 draws, fitted width", "AdamW"),
    "IVON auto fitted width − AdamW + temperature": (
        "IVON auto, 8 draws, fitted width",
        "AdamW + temperature",
    ),
    "IVON auto fitted width − AdamW at the same rate": (
        "IVON auto, 8 draws, fitted width",
        "AdamW at IVON's rate",
    ),
    "IVON auto fitted width − AdamW at the same rate + temperature": (
        "IVON auto, 8 draws, fitted width",
        "AdamW at IVON's rate + temperature",
    ),
    "IVON auto linearised − AdamW": ("IVON auto, linearised", "AdamW"),
    "IVON auto linearised − AdamW + temperature": ("IVON auto, linearised", "AdamW + temperature"),
    "IVON auto linearised − AdamW at the same rate": ("IVON auto, linearised", "AdamW at IVON's rate"),
    "IVON auto linearised − AdamW at the same rate + temperature": (
        "IVON auto, linearised",
        "AdamW at IVON's rate + temperature",
    ),
    "IVON auto Kronecker − AdamW": ("IVON auto, linearised, Kronecker", "AdamW"),
    "IVON auto Kronecker − AdamW + temperature": ("IVON auto, linearised, Kronecker", "AdamW + temperature"),
    "IVON auto Kronecker + temperature − AdamW + temperature": (
        "IVON auto, linearised, Kronecker + temperature",
        "AdamW + temperature",
    ),
    "IVON auto Kronecker − AdamW at the same rate": (
        "IVON auto, linearised, Kronecker",
        "AdamW at IVON's rate",
    ),
    "IVON auto Kronecker − AdamW at the same rate + temperature": (
        "IVON auto, linearised, Kronecker",
        "AdamW at IVON's rate + temperature",
    ),
    "IVON auto Kronecker − Laplace Kronecker": (
        "IVON auto, linearised, Kronecker",
        "Laplace, linearised, Kronecker",
    ),
    "IVON auto linearised − Laplace linearised": ("IVON auto, linearised", "Laplace, linearised"),
    "IVON auto Kronecker − Laplace Kronecker at the same rate": (
        "IVON auto, linearised, Kronecker",
        "Laplace, linearised, Kronecker at IVON's rate",
    ),
    "IVON auto linearised − Laplace linearised at the same rate": (
        "IVON auto, linearised",
        "Laplace, linearised at IVON's rate",
    ),
    "IVON auto draws − diagonal Laplace at the same rate": (
        "IVON auto, 8 draws",
        "diagonal Laplace, 8 at IVON's rate",
    ),
    "IVON auto draws − MC dropout at the same rate": ("IVON auto, 8 draws", "MC dropout, 8 at IVON's rate"),
    "IVON auto Kronecker − MC dropout at the same rate": (
        "IVON auto, linearised, Kronecker",
        "MC dropout, 8 at IVON's rate",
    ),
    "IVON auto Kronecker − MC dropout": ("IVON auto, linearised, Kronecker", "MC dropout, 8"),
    "IVON auto draws − IVON published draws": ("IVON auto, 8 draws", "IVON published, 8 draws"),
    "IVON auto Kronecker − ensemble of 4 AdamW": (
        "IVON auto, linearised, Kronecker",
        "ensemble of 4 AdamW (4 × the cost)",
    ),
    "IVON auto Kronecker − ensemble of 4 AdamW at the same rate": (
        "IVON auto, linearised, Kronecker",
        "ensemble of 4 AdamW at IVON's rate (4 × the cost)",
    ),
    "mixture of 4 IVON − ensemble of 4 AdamW at IVON's rate": (
        "mixture of 4 IVON posteriors (4 × the cost)",
        "ensemble of 4 AdamW at IVON's rate (4 × the cost)",
    ),
    "mixture of 4 IVON + temperature − ensemble of 4 AdamW at IVON's rate + temperature": (
        "mixture of 4 IVON posteriors + temperature",
        "ensemble of 4 AdamW at IVON's rate + temperature",
    ),
    "mixture of 4 IVON − ensemble of 4 AdamW": (
        "mixture of 4 IVON posteriors (4 × the cost)",
        "ensemble of 4 AdamW (4 × the cost)",
    ),
    "mixture of 4 IVON + temperature − ensemble of 4 AdamW + temperature": (
        "mixture of 4 IVON posteriors + temperature",
        "ensemble of 4 AdamW + temperature",
    ),
}
INFORMATION: dict[str, tuple[str, str, str]] = {
    name: ROWS[name]
    for name in (
        "MC dropout, 8", "diagonal Laplace, 8", "Laplace, linearised", "Laplace, linearised, Kronecker",
        "MC dropout, 8 at IVON's rate", "diagonal Laplace, 8 at IVON's rate", "Laplace, linearised at IVON's rate",
        "Laplace, linearised, Kronecker at IVON's rate",
        "IVON auto, 8 draws", "IVON auto, linearised", "IVON auto, linearised, Kronecker",
    )
} | {
    "ensemble of 4 AdamW": ("adamw_ensemble", "members", "raw"),
    "ensemble of 4 AdamW at IVON's rate": ("adamw_same_ensemble", "members", "raw"),
    "mixture of 4 IVON posteriors, one seed": ("ivon_ensemble", "members", "raw"),
}  # fmt: skip
"""Predictors whose mutual information is compared as a score of foreign rows."""
FOREIGN_BASELINES = {
    "AdamW's entropy": ("AdamW", "foreign_auroc_entropy"),
    "AdamW's max-probability": ("AdamW", "foreign_auroc_max_probability"),
    "entropy of AdamW at IVON's rate": ("AdamW at IVON's rate", "foreign_auroc_entropy"),
    "max-probability of AdamW at IVON's rate": ("AdamW at IVON's rate", "foreign_auroc_max_probability"),
}
"""Name -> row and metric."""
