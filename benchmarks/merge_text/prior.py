"""Curvature of the base model's own text in a merge: does it keep what the base could do, and at which cost?

P holds the input Grams of the base model, without any adapter, on stories that are neither trained nor tested on. It
can enter gradient matching in two ways of ``vlora merge``:

    prior: PATH   X (tau P + sum_t G_t) = sum_t W_t (tau P + G_t)
    keep: PATH    X (tau I + w P + sum_t G_t) = sum_t W_t (tau I + G_t)      w: ``keep_weight``

The prior stands on both sides: where P is large the first gives the sum of the updates, as every adapter is taken to
have had that prior. Only the second draws the merge towards the base there. Isotropic priors of the same tau stand
beside the first.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.merge_text.adapters import batches
from benchmarks.merge_text.arms import Bench
from benchmarks.merge_text.texts import STORIES, TEXTS

__all__ = ["ISOTROPIC", "KEPT", "OF_STORIES", "TAUS", "WEIGHTS", "with_prior"]

TAUS = (0.3, 1.0, 3.0, 10.0)
"""The default first."""
OF_STORIES, ISOTROPIC = "prior of stories, tau {:g}", "isotropic prior, tau {:g}"
WEIGHTS = (1.0, 3.0)
KEPT = "stories kept, weight {:g}"


def with_prior(bench: Bench, seed: int) -> dict[str, Any]:
    """Scores of merges with either prior, of the base and of the single adapters, at the default scalar."""
    own = bench.adapters(seed)
    sources = [{"path": str(path)} for path in own.values()]
    file = stories_prior(bench)
    models: dict[str, Path | str] = {}
    for tau in TAUS:
        for name, more in ((OF_STORIES, {"prior": str(file)}), (ISOTROPIC, {})):
            place = bench.work / f"prior_{seed}" / name.format(tau).replace(" ", "_").replace(",", "")
            keys = {"method": "gradient_matching", "curvature": "kronecker", "tau": tau, **more}
            models[name.format(tau)] = bench.merged(place, sources, **keys)
    for weight in WEIGHTS:
        name = KEPT.format(weight)
        place = bench.work / f"prior_{seed}" / name.replace(" ", "_").replace(",", "")
        keys = {
            "method": "gradient_matching",
            "curvature": "kronecker",
            "keep": str(file),
            "keep_weight": weight,
        }
        models[name] = bench.merged(place, sources, **keys)
    test = bench.scores({**models, "base": "base", **own}, "test", bench.work / f"prior_{seed}" / "test")
    return {
        "seed": seed,
        "arms": {name: {"default": test[name]} for name in models},
        "no adapter": test["base"],
        "single": {text: test[text] for text in TEXTS},
    }


def stories_prior(bench: Bench) -> Path:
    """The file with the input Gram of every linear layer of the base model on stories."""
    from transformers import AutoModelForCausalLM

    from vlora.curvature import collect_curvature

    place = bench.work / "prior" / "curvature.safetensors"
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = batches(bench.files[f"train_{STORIES}"], bench.base)
        model = AutoModelForCausalLM.from_pretrained(bench.base)
        save_file(collect_curvature(model, rows, votes="equal", joined=False, progress=False), place)
    return place
