"""Fixtures that the whole suite shares: tiny offline models and the optional reference data."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real data and a tiny real Llama beside the checkout; the test skips when it is absent."""
    folder = Path(os.environ.get("VLORA_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"reference data not found at {folder} (set VLORA_SHARED to use it)")
    return folder
