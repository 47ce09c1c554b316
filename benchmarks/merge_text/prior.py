"""A prior of the base model's own text: does it keep what the base could do, and what does it cost the merge?

Gradient matching with H_0 = tau P in place of tau I, where P holds the input Grams of the base model, without any
adapter, on stories that are neither trained nor tested on (``prior: PATH`` of ``vlora merge``). The isotropic prior at
the same tau stands beside it, as a larger tau is a stronger prior in either case.
"""

from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from benchmarks.merge_text.adapters import batches
from benchmarks.merge_text.arms import Bench
from benchmarks.merge_text.texts import STORIES, TEXTS

__all__ = ["ISOTROPIC", "OF_STORIES", "TAUS", "with_prior"]

TAUS = (0.3, 1.0, 3.0, 10.0)
"""The default first."""
OF_STORIES, ISOTROPIC = "prior of stories, tau {:g}", "isotropic prior, tau {:g}"


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
        save_file(collect_curvature(model, rows, votes="equal", progress=False), place)
    return place
