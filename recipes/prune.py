"""``vlora prune``: a smaller or sparser adapter from a posterior folder, and a table of what was removed."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vlora.errors import ConfigError
from vlora.files import check_output_folder
from vlora.posterior import Posterior
from vlora.posterior.pruned import Pruned
from vlora.posterior.pruning import prune_entries, prune_ranks

__all__ = ["REPORT", "prune_folder", "prune_table"]

REPORT = "prune_report.json"
_SCOPES = {"entries": ("tensor", "adapter"), "ranks": ("module", "adapter")}


def prune_folder(
    source: str,
    output: Path,
    *,
    what: Literal["entries", "ranks"] = "ranks",
    scope: str | None = None,
    overwrite: bool = False,
    **choice: Any,
) -> Pruned:
    """Prune a posterior folder into a new one, written whole or not at all, with ``prune_report.json`` beside.

    Args:
        source: Posterior folder or hub id.
        output: Folder to write.
        what: ``entries`` or ``ranks``.
        scope: See :mod:`vlora.posterior.pruning`; None takes the default of ``what``.
        overwrite: Whether a former adapter at ``output`` may be replaced.
        **choice: ``snr``, ``fraction`` or ``keep_rank``, and ``gauge``.

    Returns:
        The pruned posterior and what was removed.

    Raises:
        VloraError: What does not fit, in one line; nothing is written then.
    """
    check_output_folder(output, "adapter_config.json", overwrite=overwrite, cure="pass --overwrite")
    if scope is not None:
        if scope not in _SCOPES[what]:
            raise ConfigError(f"scope of {what} must be {' or '.join(_SCOPES[what])}, got {scope!r}")
        choice["scope"] = scope
    if what == "entries" and choice.pop("keep_rank", None) is not None:
        raise ConfigError(
            "keep_rank counts rank components; leave out --entries, or give --snr or --fraction"
        )
    prune = prune_entries if what == "entries" else prune_ranks
    pruned = prune(Posterior.from_pretrained(source), **choice)
    posterior = pruned.posterior
    if pruned.removed:
        origin = {**posterior.meta.sources[0], "path": source}
        posterior = replace(posterior, meta=replace(posterior.meta, sources=[origin]))
    report = {
        "source": source,
        "what": what,
        **{k: v for k, v in choice.items() if v is not None},
        **_facts(pruned),
    }
    posterior.save_pretrained(
        output, overwrite=overwrite, extra_files={REPORT: json.dumps(report, indent=2) + "\n"}
    )
    return replace(pruned, posterior=posterior)


def prune_table(pruned: Pruned) -> str:
    """One line per module and a total, aligned for a terminal."""
    width = max(len("module"), *(len(row.module) for row in pruned.modules))
    unit = "components" if pruned.what == "ranks" else "entries"
    lines = [
        f"{'module':<{width}}  {'kept':>9}  {'removed':>9}  {'snr removed':>11}  {'snr kept':>9}  loss increase"
    ]
    for row in pruned.modules:
        lines.append(
            f"{row.module:<{width}}  {row.total - row.removed:>9}  {row.removed:>9}  "
            f"{_number(row.largest_removed_snr, '<='):>11}  {_number(row.smallest_kept_snr, '>='):>9}  "
            f"{row.predicted_loss_increase:.3g}"
        )
    lines.append(
        f"removed {pruned.removed} of {pruned.total} {unit}; predicted loss increase "
        f"{pruned.predicted_loss_increase:.3g} nats per {pruned.unit}"
    )
    return "\n".join(lines)


def _facts(pruned: Pruned) -> dict[str, Any]:
    return {
        "total": pruned.total,
        "removed": pruned.removed,
        "predicted_loss_increase": pruned.predicted_loss_increase,
        "modules": [dataclasses.asdict(row) for row in pruned.modules],
    }


def _number(value: float | None, sign: str) -> str:
    return "–" if value is None else f"{sign} {value:.3g}"
