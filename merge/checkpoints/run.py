"""Carry out a plan: a model folder appears under its final name only when it is whole."""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlora.errors import CheckpointError, IdentityError, IncompatibleAdaptersError, OutputError
from vlora.files import atomic_write
from vlora.merge.checkpoints.agreement import by_kind
from vlora.merge.checkpoints.card import card, merge_content, merge_json
from vlora.merge.checkpoints.config import ModelMergeConfig
from vlora.merge.checkpoints.engine import Engine, create_shards
from vlora.merge.checkpoints.findings import finding_notes
from vlora.merge.checkpoints.headers import INDEX
from vlora.merge.checkpoints.layout import index_json
from vlora.merge.checkpoints.plan import MARKER, MergePlan, make_plan
from vlora.merge.checkpoints.stream import TensorJob
from vlora.merge.checkpoints.verify import check_output
from vlora.merge.checkpoints.workspace import Workspace, locked

__all__ = ["Page", "carry_out", "run_model_merge"]

Findings = Mapping[str, Mapping[str, Any]]
Page = Callable[[Mapping[str, Any], Findings], str]
"""From the content of ``merge.json`` and what was found per tensor to an HTML page."""


def run_model_merge(config: ModelMergeConfig, page: Page | None = None) -> Path:
    """Merge models, or adapters into their base, into a new model folder.

    Beside the weights it holds the configuration and tokenizer of the base, ``merge.json`` and ``README.md``. A killed
    run goes on where it stopped when it is started again.

    Args:
        config: What to merge, how, and where to.
        page: Renders ``report.html`` beside them, see :func:`vlora.recipes.merge_model_page.model_merge_page`.

    Returns:
        The folder that was written.

    Raises:
        VloraError: Anything that does not fit, in one line; nothing has the final name then.
    """
    return carry_out(make_plan(config), page)


def carry_out(plan: MergePlan, page: Page | None = None) -> Path:
    """Do what a plan says.

    Args:
        plan: What :func:`vlora.merge.checkpoints.plan.make_plan` gave.
        page: As for :func:`run_model_merge`.

    Raises:
        CheckpointError: The plan has problems, or an input is damaged or holds NaN.
        IncompatibleAdaptersError: A Gram of the curvature is none, or negative weights outweigh all curvature.
        OutputError: The disk is full or cannot be written, or another run writes the same folder.
        IdentityError: A golden identity does not hold on the tensors that were written; they are removed.
    """
    if plan.dry:
        raise ValueError("this plan is only to be looked at; make one without dry=True")
    plan.check()
    start = time.perf_counter()
    with locked(plan.output):
        work = Workspace(plan.output, plan.signature())
        done = work.finished()
        if done:
            print(f"going on: {len(done)} of {len(plan.draft.jobs)} tensors are written", file=sys.stderr)
        try:
            if not done:
                work.start()
                create_shards(work.folder, plan.shards)
                work.begin()
            _merge(plan, work, done)
            _summarise(plan, done)
            if plan.settings.verify:
                plan.draft.identities.update(check_output(plan, work.folder))
            _write_small_files(plan, work.folder, done, page)
            work.finish()
        except (OutputError, CheckpointError, IdentityError, IncompatibleAdaptersError):
            work.discard()  # a full disk is not helped by an unfinished output, nor are bad inputs or wrong tensors
            raise
    seconds = time.perf_counter() - start
    for note in plan.draft.notes:
        print(f"note: {note}", file=sys.stderr)
    size = plan.bytes_written / 1e9
    print(
        f"merged by {plan.draft.method} into {plan.output} ({size:.2f} GB, {seconds:.1f} s)", file=sys.stderr
    )
    return plan.output


def _merge(plan: MergePlan, work: Workspace, done: dict[str, dict[str, Any]]) -> None:
    """Make the tensors that are not done, and add them with their findings."""
    left = [job for job in plan.draft.jobs if job.name not in done]
    total = sum(job.tiling.numel for job in left)
    with tqdm(
        total=total, desc="merge", unit="entries", unit_scale=True, file=sys.stderr, disable=None
    ) as bar:

        def finished(job: TensorJob, findings: Mapping[str, Any]) -> None:
            work.note(job.name, findings)
            done[job.name] = dict(findings)
            bar.update(job.tiling.numel)

        Engine(work.folder, plan.threads, plan.block_bytes).run(left, plan.shards, finished)


def _summarise(plan: MergePlan, findings: Mapping[str, Mapping[str, Any]]) -> None:
    """Findings in the order of the tensors, whatever order they were made in."""
    draft = plan.draft
    ordered = {job.name: findings[job.name] for job in draft.jobs}
    draft.notes.extend(finding_notes(draft.jobs, ordered))
    draft.agreement.update(by_kind(ordered))


def _write_small_files(plan: MergePlan, folder: Path, findings: Findings, page: Page | None) -> None:
    draft = plan.draft
    for name, source in draft.files.items():
        atomic_write(folder / name, source.read_bytes())
    texts = {
        "config.json": json.dumps(draft.config, indent=2, ensure_ascii=False) + "\n",
        "README.md": card(plan),
        **draft.texts,
        MARKER: merge_json(plan),
    }
    if len(plan.shards) > 1:
        texts[INDEX] = json.dumps(index_json(plan.shards), indent=2) + "\n"
    if page is not None:
        ordered = {job.name: findings[job.name] for job in draft.jobs}
        texts["report.html"] = page(merge_content(plan), ordered)
    for name, text in texts.items():
        atomic_write(folder / name, text)
