"""``vlora lm-eval``: tasks of lm-evaluation-harness on a posterior, and their results as files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.files import atomic_folder, check_output_folder

__all__ = ["results_lines", "run_harness"]

RESULTS = "lm_eval.json"
DRAWS = "draws.jsonl"
_KEPT = ("results", "configs", "versions", "n-samples", "n-shot", "higher_is_better", "config", "task_hashes")


def run_harness(
    adapter: str,
    tasks: Sequence[str],
    out: Path,
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Run tasks and write the harness's results and what every draw said.

    Args:
        adapter: Posterior folder or hub id.
        tasks: Names of tasks.
        out: Folder to write.
        include_path: Folder of further task files.
        num_fewshot: Examples in front of every question; None leaves it to the task.
        limit: Documents of every task.
        overwrite: Whether a former output may be replaced.
        **settings: For :class:`vlora.eval.lm_eval.VloraLM`.

    Returns:
        What was written to ``lm_eval.json``.

    Raises:
        MissingDependencyError: lm-evaluation-harness is not installed.
        ConfigError: A task is unknown.
        OutputExistsError: ``out`` holds something else.
        VloraError: The adapter cannot be used; see :class:`vlora.eval.lm_eval.VloraLM`.
    """
    path = check_output_folder(out, RESULTS, overwrite=overwrite)
    from vlora.eval.lm_eval import VloraLM  # raises in one line where the harness is missing

    # isort: split
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=None if include_path is None else str(include_path))
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(f"lm-evaluation-harness has no task {', '.join(unknown)}; see `lm-eval ls tasks`")
    model = VloraLM(adapter, **settings)
    found: Any = simple_evaluate(
        model=model, tasks=list(tasks), num_fewshot=num_fewshot, limit=limit, task_manager=manager
    )
    kept = {key: found[key] for key in _KEPT if key in found}
    content = json.loads(json.dumps(kept, default=str))
    with atomic_folder(path) as folder:
        (folder / RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in model.draw_scores)
        (folder / DRAWS).write_text("".join(lines), encoding="utf-8")
    return content


def results_lines(content: Mapping[str, Any]) -> str:
    """One line per task and metric, with the harness's standard error."""
    lines = []
    for task, metrics in content["results"].items():
        for key, value in metrics.items():
            name, _, filtered = key.partition(",")
            if not filtered or name.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = metrics.get(f"{name}_stderr,{filtered}")
            spread = f" ± {error:.4f}" if isinstance(error, (int, float)) else ""
            lines.append(f"{task}  {name}  {value:.4f}{spread}")
    return "\n".join(lines)
