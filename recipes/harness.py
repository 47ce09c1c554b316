"""``vlora lm-eval``: tasks of lm-evaluation-harness on a posterior, and their results as files."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlora.errors import ConfigError
from vlora.files import atomic_folder, check_output_folder
from vlora.recipes.harness_task import write_harness_task

__all__ = ["results_lines", "run_harness"]

RESULTS = "lm_eval.json"
DRAWS = "draws.jsonl"
_KEPT = ("results", "configs", "versions", "n-samples", "n-shot", "higher_is_better", "config", "task_hashes")


def run_harness(
    adapter: str,
    tasks: Sequence[str],
    out: Path,
    *,
    task: str | None = None,
    data: str | None = None,
    fewshot: str | None = None,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Run tasks and write the harness's results and what every draw said.

    Args:
        adapter: Posterior folder or hub id.
        tasks: Names of the harness's tasks.
        out: Folder to write.
        task: A task file of vlora's, to run beside them.
        data: Folder or file of its rows; None takes its place on the hub.
        fewshot: Solved rows, for a task whose prompts begin with examples.
        include_path: Folder of further task files.
        num_fewshot: Examples in front of every question; None leaves it to the task.
        limit: Documents of every task.
        overwrite: Whether a former output may be replaced.
        **settings: For :class:`vlora.eval.lm_eval.VloraLM`.

    Returns:
        What was written to ``lm_eval.json``.

    Raises:
        MissingDependencyError: lm-evaluation-harness is not installed.
        ConfigError: A task is unknown, none was named, or a task file that asks for answers.
        DataError: The rows of a task file cannot be read.
        OutputExistsError: ``out`` holds something else.
        VloraError: The adapter cannot be used; see :class:`vlora.eval.lm_eval.VloraLM`.
    """
    if not tasks and task is None:
        raise ConfigError("name tasks of the harness by --tasks, or a task file of vlora's by --task")
    if task is None and (data or fewshot):
        raise ConfigError("data and fewshot belong to a task file; name it by --task")
    path = check_output_folder(out, RESULTS, overwrite=overwrite)
    from vlora.eval.lm_eval import VloraLM  # raises in one line where the harness is missing

    with tempfile.TemporaryDirectory() as place:
        asked = write_harness_task(Path(place), task, data, fewshot) if task is not None else None
        names = [*tasks, *([asked["task"]] if asked else [])]
        manager = _manager([Path(place), *([include_path] if include_path else [])], names)
        model: Any = VloraLM(adapter, **settings)
        content = _evaluate(model, names, manager, num_fewshot=num_fewshot, limit=limit)
    content |= {"vlora_task": asked} if asked else {}
    with atomic_folder(path) as folder:
        (folder / RESULTS).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in model.draw_scores)
        (folder / DRAWS).write_text("".join(lines), encoding="utf-8")
    return content


def _manager(places: Sequence[Path], names: Sequence[str]) -> Any:
    """The tasks of some folders, and the harness's own where a name needs them: reading those takes a while."""
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    manager = TaskManager(include_path=[str(place) for place in places], include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):  # groups may hold tasks of the harness
        manager = TaskManager(include_path=[str(place) for place in places])
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown:
        raise ConfigError(
            f"lm-evaluation-harness has no task {', '.join(unknown)}; see `lm-eval ls tasks`, or name a task file of "
            "vlora's by --task"
        )
    return manager


def _evaluate(model: Any, names: Sequence[str], manager: Any, **settings: Any) -> dict[str, Any]:
    """What the harness finds, as plain JSON values."""
    from lm_eval import simple_evaluate  # pyright: ignore[reportMissingImports]

    run: Any = simple_evaluate
    found = run(model=model, tasks=list(names), task_manager=manager, **settings)
    return json.loads(json.dumps({key: found[key] for key in _KEPT if key in found}, default=str))


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
