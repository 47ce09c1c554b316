"""A world small enough to know completely: generated people and facts, and a tiny Llama that knows some of them.

What a model was taught, what it was taught with conflicting values and what it cannot know are all known here, so
recall, calibration and hallucination are measured without a judge. ``vlora demo`` runs on it, without any download.
"""

from importlib.resources import files
from pathlib import Path

from vlora.recipes.closed_world.questions import GROUPS, write_datasets
from vlora.recipes.closed_world.world import World, build_world

__all__ = ["GROUPS", "World", "build_world", "model_folder", "write_datasets"]


def model_folder() -> Path:
    """Locate the shipped model and tokenizer, which ``from_pretrained`` of transformers loads offline.

    Returns:
        Folder inside the installed package.

    Raises:
        FileNotFoundError: If the package was installed without its model files.
    """
    folder = Path(str(files("vlora.recipes.closed_world"))) / "model"
    if not (folder / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{folder}: expected the shipped closed-world model, found none; reinstall variational-lora"
        )
    return folder
