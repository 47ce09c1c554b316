"""``vlora eval``: score, compute, and draw the report."""

from pathlib import Path

from vlora.eval.config import EvalConfig
from vlora.eval.report import write_report
from vlora.eval.results import read_results
from vlora.eval.run import RESULTS, run_eval

__all__ = ["REPORT", "evaluate"]

REPORT = "report.html"


def evaluate(config: EvalConfig) -> Path:
    """Evaluate adapters and write ``records.jsonl``, ``results.json``, ``config.yaml`` and ``report.html``.

    Args:
        config: What to evaluate.

    Returns:
        The output folder.

    Raises:
        VloraError: See :func:`vlora.eval.run.run_eval`.
    """
    return run_eval(
        config, finish=lambda folder: write_report(read_results(folder / RESULTS), folder / REPORT)
    )
