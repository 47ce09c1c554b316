"""Configuration files: mistakes are named with their key, values arrive typed, the resolved file reads back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from pydantic import ConfigDict

from vlora.config import config_sha256, load_config, save_config, to_plain
from vlora.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    __pydantic_config__ = ConfigDict(extra="forbid")

    lr: float = 1.0
    ess: float | None = None

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"lr must be > 0, got {self.lr}")


@dataclass(frozen=True, kw_only=True)
class Source:
    __pydantic_config__ = ConfigDict(extra="forbid")

    path: str


@dataclass(frozen=True, kw_only=True)
class Config:
    __pydantic_config__ = ConfigDict(extra="forbid")

    base_model: str
    optimizer: Optimizer = field(default_factory=Optimizer)
    model: str | list[str | Source] = "x"
    training: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base_model": "a", "optimizer": {"lrr": 1}}, "in optimizer: unknown key 'lrr'; did you mean 'lr'"),
        (
            {"base_mdel": "a"},
            "unknown key 'base_mdel'; did you mean 'base_model'.*base_model: this key is required",
        ),
        ({"base_model": "a", "optimizer": {"lr": "abc"}}, "optimizer.lr: .*number.*got 'abc'"),
        ({"base_model": "a", "optimizer": {"lr": -1}}, "optimizer: lr must be > 0, got -1"),
        ({"base_model": "a", "model": [{"pth": "b"}]}, "in model.0: unknown key 'pth'; did you mean 'path'"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(Config, values)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True, kw_only=True)
class Flags:
    __pydantic_config__ = ConfigDict(extra="forbid")

    rank: Literal["keep"] | int | float = "keep"
    weights: dict[str, float | list[float]] = field(default_factory=dict)
    parts: tuple[Optimizer, ...] = ()
    tokens: bool | int = 0
    auto: Literal[True] | float = 0.0
    free: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"rank": True}, "rank"),
        ({"weights": {"mlp": False}}, "weights.mlp"),
        ({"weights": {"mlp": [0.5, True]}}, "weights.mlp.1"),
        ({"parts": [{"lr": 2}, {"lr": True}]}, "parts.1.lr"),
    ],
)
def test_true_is_no_number(values, key):
    with pytest.raises(ConfigError, match=f"config: {key}: expected a number, got (true|false)$"):
        load_config(Flags, values)


def test_true_stays_where_it_belongs():
    config = load_config(Flags, {"tokens": True, "auto": True, "free": {"x": True}})
    assert config.tokens is True and config.auto is True and config.free == {"x": True}


def test_overrides_and_scientific_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base_model: a\noptimizer:\n  lr: 1e-4\ntraining: {learning_rate: 2e-5}\n")
    config = load_config(Config, path, ["optimizer.ess=3e4", "training.max_steps=10", "model=[p, {path: q}]"])
    assert config.optimizer == Optimizer(lr=1e-4, ess=3e4)
    assert config.training == {"learning_rate": 2e-5, "max_steps": 10}
    assert config.model == ["p", Source(path="q")]


def test_resolved_file_reads_back(tmp_path):
    config = load_config(Config, {"base_model": "a", "model": [{"path": "q"}], "training": {"x": [1, 2]}})
    save_config(config, tmp_path / "r.yaml")
    assert load_config(Config, tmp_path / "r.yaml") == config
    assert config_sha256(config) == config_sha256(load_config(Config, to_plain(config)))
    assert config_sha256(config) != config_sha256(load_config(Config, {"base_model": "b"}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1", "expected 'key: value' lines, got list"),
        ("base_model: a\nbase_model: b\n", "'base_model' is given twice"),
        ("base_model: !!python/object/apply:os.getcwd []", "not valid YAML"),
        ("a: \x00", "not valid YAML: unacceptable character"),
        (b"\xff\xfe\x00\x80", "no text in UTF-8"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=message):
        load_config(Config, path)


def test_bad_overrides_and_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="not of the form key=value"):
        load_config(Config, {"base_model": "a"}, ["optimizer.lr"])
    with pytest.raises(ConfigError, match="holds a str, not a section"):
        load_config(Config, {"base_model": "a"}, ["base_model.x=1"])
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(Config, tmp_path / "none.yaml")
