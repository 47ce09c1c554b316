"""What a reader of a preview should know, in sentences."""

from collections.abc import Mapping

from vlora.merge.adapters.reading import Inputs
from vlora.merge.config import MergeConfig
from vlora.merge.preview.model import PreviewModel

__all__ = ["count_examples", "preview_notes"]


def count_examples(inputs: Inputs, model: PreviewModel) -> list[int | None]:
    """Training examples per task, the mean over its adapters; None where one has no posterior."""
    counts = []
    for members in model.members:
        metas = [inputs.posteriors[i].meta for i in members]
        known = all(inputs.posteriors[i].has_hess for i in members)
        counts.append(sum(m.num_examples for m in metas) // len(metas) if known else None)
    return counts


def preview_notes(
    config: MergeConfig, inputs: Inputs, model: PreviewModel, check: Mapping[str, float], worth: bool
) -> list[str]:
    """Sentences about approximations and gaps, most important first.

    Args:
        config: The merge.
        inputs: Its adapters.
        model: Of the preview.
        check: How far the reduced model is off; empty where nothing is reduced.
        worth: Whether it is known what the adapters are worth.
    """
    notes = []
    rest = len(inputs.modules) - len(model.cores)
    if config.method == "gradient_matching" and rest:
        notes.append(
            f"{rest} of {len(inputs.modules)} modules are previewed as scaled sums: gradient matching is by sites, h "
            "alone or nothing there, or removes data"
        )
    if check:
        notes.append(
            f"predicted by a reduced model of gradient matching; {check['solved']:.0f} weightings (those with a name "
            f"and two more) were solved in full, which changed an increase by at most {check['increase']:.1g}"
            + (f" and a standard deviation by {check['std']:.1g}" if "std" in check else "")
        )
    for i, name in enumerate(inputs.names):
        lacking = [m for m in inputs.modules if m not in inputs.layouts[i]]
        if lacking:
            notes.append(
                f"{name} has no adapter, so no curvature, in {len(lacking)} modules; they count 0 for it"
            )
        if not inputs.posteriors[i].has_hess:
            kind = (
                "Grams of unknown scale"
                if inputs.posteriors[i].curvature
                else "nothing: plain distance between updates"
            )
            notes.append(
                f"{name} has no h; its curvature is {kind}, and modules count by the size of the update"
            )
    if not worth:
        notes.append(
            "all tasks count alike in the average; where adapters are worth unlike amounts (tasks of different kinds) "
            "give the nats that each is worth (--worth)"
        )
    if inputs.full_keys:
        notes.append(
            f"{len(inputs.full_keys)} fully trained tensors (first {inputs.full_keys[0]}) are not part of it"
        )
    return notes
