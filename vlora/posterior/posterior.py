"""The one object that training, merging and evaluation share: a Gaussian over an adapter's weights.

q(theta) = N(mean, 1 / (ess * (h + weight_decay))), independent entries, unless draws are asked for with the covariance
of leading directions. Paper -> code (Shen et al. 2024, arXiv:2402.17641): m -> mean, h -> hess, lambda -> ess,
delta -> weight_decay.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from vlora.posterior import card, export, folder, hub
from vlora.posterior.draws import DrawCovariance, deviations
from vlora.posterior.fit import check_fit
from vlora.posterior.health import describe_health
from vlora.posterior.keys import adapter_tensors
from vlora.posterior.leading import Leading
from vlora.posterior.meta import PosteriorMeta
from vlora.posterior.site import Site

__all__ = ["Posterior"]


@dataclass(frozen=True)
class Posterior:
    """Gaussian posterior of a PEFT adapter, or a plain adapter when it has no ``hess``.

    Attributes:
        mean: PEFT key -> posterior mean, in the dtype of the adapter file.
        hess: PEFT key -> h, the diagonal Hessian of the mean per-example loss, float32. A key of ``mean``
            without h is deterministic (a frozen factor); no h at all makes this a plain PEFT adapter.
        meta: Settings, lineage, health.
        adapter_config: Content of PEFT's ``adapter_config.json``.
        curvature: Optional Kronecker factors for merging, ``<module>.input_gram``, ``.output_gram``
            and ``.activation_gram``.
        calibration: Optional temperature and thresholds fitted by evaluation.
        directions: Optional leading directions of the Fisher matrix over all stochastic tensors, at this mean.
        covariance: What draws are made with, ``independent`` entries or ``leading`` directions; it is not stored.
    """

    mean: Mapping[str, Tensor]
    hess: Mapping[str, Tensor]
    meta: PosteriorMeta
    adapter_config: Mapping[str, Any]
    curvature: Mapping[str, Tensor] | None = None
    calibration: Mapping[str, Any] | None = field(default=None)
    directions: Leading | None = None
    covariance: DrawCovariance = "independent"

    @classmethod
    def from_optimizer(
        cls, model: nn.Module, optimizer: Any, *, num_examples: int, **settings: Any
    ) -> "Posterior":
        """Posterior of a PEFT model trained with :class:`vlora.IVON`.

        Args:
            model: The PEFT model; wrappers of DDP and ``torch.compile`` are looked through.
            optimizer: The IVON optimizer, or accelerate's wrapper around it. Left holding the mean.
            num_examples: N, the rows that one pass over the training data sees; for a stream, those of the run.
            **settings: See :func:`vlora.posterior.export.collect`: ``adapter_name``, ``gauge``,
                ``loss_reduction``, ``tokens_per_example``, ``base_model``, ``config_sha256``, ``seed``.

        Raises:
            TrainingError: No step was taken, a trained value is not finite, the model is no PEFT model, or
                ``num_examples`` is no whole number >= 1.
        """
        mean, hess, meta, adapter_config = export.collect(
            model, optimizer, num_examples=num_examples, **settings
        )
        return cls(mean, hess, meta, adapter_config)

    @classmethod
    def from_pretrained(cls, source: str | PathLike, *, revision: str | None = None) -> "Posterior":
        """Read a posterior folder, or a plain PEFT adapter, from disk or from the hub.

        Raises:
            PosteriorFormatError: Damaged, mismatched, foreign or newer content, in one line.
        """
        return cls(**folder.read(hub.resolve(source, revision)))

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        *,
        overwrite: bool = True,
        extra_files: Mapping[str, str] | None = None,
    ) -> None:
        """Write the folder whole or not at all; plain ``PeftModel.from_pretrained`` loads the mean from it.

        Args:
            save_directory: Target; a former adapter there is replaced in one rename.
            overwrite: Whether a former adapter may be replaced. A folder of anything else never is.
            extra_files: Name -> text of further files to write beside, such as the resolved configuration.

        Raises:
            OutputExistsError: The folder holds something else.
            OutputError: The place cannot be written.
        """
        files = {"README.md": card.render(self), **(extra_files or {})}
        folder.write(self, save_directory, overwrite=overwrite, text_files=files)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any
    ) -> str:
        """Upload the folder to the Hugging Face hub and return the address of the commit."""
        return hub.push(self, repo_id, private=private, token=token, **kwargs)

    @property
    def has_hess(self) -> bool:
        """Whether any tensor is stochastic; False for a plain PEFT adapter."""
        return bool(self.hess)

    @property
    def temperature(self) -> float | None:
        """N / ess: 1 is Bayes, below 1 is colder."""
        return self.meta.temperature

    def precision(self) -> dict[str, Tensor]:
        """``ess * (h + weight_decay)`` of every stochastic tensor, float32; higher is more certain."""
        return {
            key: self.meta.of("ess", key) * (hess.float() + self.meta.of("weight_decay", key))
            for key, hess in self.hess.items()
        }

    def std(self) -> dict[str, Tensor]:
        """Posterior standard deviation of every stochastic tensor, in units of the weight; 0 for pruned entries."""
        std = {key: torch.rsqrt(precision) for key, precision in self.precision().items()}
        for key in std.keys() & set(self.meta.fixed_zeros):
            std[key] = std[key].masked_fill(self.mean[key] == 0, 0.0)
        return std

    def sample(self, k: int, *, antithetic: bool = False) -> dict[str, Tensor]:
        """The k-th draw of the adapter's weights, the same on every machine.

        Args:
            k: Number of the draw, from 0.
            antithetic: Draws 2j and 2j + 1 use the same noise with opposite signs, which removes the odd
                part of the Monte Carlo error.

        Returns:
            One tensor per key of ``mean``, in its dtype; deterministic tensors are the mean.

        Raises:
            ConfigError: ``covariance`` is ``leading`` and cannot be had.
        """
        drawn = {key: value.clone() for key, value in self.mean.items()}
        for key, deviation in deviations(self, k, antithetic=antithetic).items():
            drawn[key] = (self.mean[key].float() + deviation).to(self.mean[key].dtype)
        return drawn

    def drawing(self, covariance: DrawCovariance) -> "Posterior":
        """The same posterior, whose draws have this covariance: ``independent``, or ``leading`` (directions)."""
        return replace(self, covariance=covariance)

    @contextmanager
    def sampled(
        self,
        model: nn.Module,
        k: int | None = None,
        *,
        antithetic: bool = False,
        adapter_name: str = "default",
    ) -> Iterator[nn.Module]:
        """Hold draw ``k`` (None: the mean) in a PEFT model inside the block; restore its weights after it.

        The former weights come back bit for bit, also when the block raises. Another adapter that was hot-swapped
        in is fine as long as it has this posterior's ranks and scaling.

        Raises:
            PosteriorFormatError: The adapter in the model has another layout, rank or scaling.
        """
        weights = self.mean if k is None else self.sample(k, antithetic=antithetic)
        live = self._live(model, adapter_name)
        former = {key: tensor.detach().clone() for key, tensor in live.items()}
        try:
            _copy_into(live, weights)
            yield model
        finally:
            _copy_into(live, former)

    def load_into(self, model: nn.Module, *, adapter_name: str = "default") -> None:
        """Write the mean into a PEFT model that already carries an adapter of this layout.

        Raises:
            PosteriorFormatError: The adapter in the model has another layout, rank or scaling.
        """
        _copy_into(self._live(model, adapter_name), self.mean)

    def _live(self, model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
        live = adapter_tensors(model, self.mean, adapter_name)
        check_fit(model, live, self.mean, self.adapter_config, adapter_name)
        return live

    def at_temperature(self, temperature: float) -> "Posterior":
        """The same posterior with ``ess = num_examples / temperature``; 1 is Bayes, higher is wider.

        Raises:
            ValueError: ``temperature`` is not positive.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        return replace(self, meta=replace(self.meta, ess=self.meta.num_examples / temperature))

    def scaled(self, std_scale: float) -> "Posterior":
        """The same posterior with every standard deviation multiplied by ``std_scale``: ``ess / std_scale^2``.

        Raises:
            ValueError: ``std_scale`` is not positive.
        """
        if not 0 < std_scale < math.inf:
            raise ValueError(f"std_scale must be > 0 and finite, got {std_scale}")
        ess, factor = self.meta.ess, std_scale**-2
        scaled = {k: v * factor for k, v in ess.items()} if isinstance(ess, Mapping) else ess * factor
        return replace(self, meta=replace(self.meta, ess=scaled))

    def with_prior(self, precision: Mapping[str, float] | float) -> "Posterior":
        """The same posterior under a prior alpha: precision ``ess * h + alpha``, ``weight_decay = alpha / ess``.

        Entries where a noisy h is negative count as no evidence, as in :meth:`site`. What leading
        directions leave out has the precision too (``Leading.resting``); they are dropped where it differs between
        tensors.

        Args:
            precision: One for all stochastic tensors, or PEFT key -> precision.

        Raises:
            ValueError: A precision is not positive.
        """
        given = precision if isinstance(precision, Mapping) else dict.fromkeys(self.hess, float(precision))
        bad = next((key for key in self.hess if not 0 < given[key] < math.inf), None)
        if bad is not None:
            raise ValueError(f"a prior precision must be > 0 and finite, got {given[bad]} for {bad}")
        hess = {key: h.clamp_min(0) if (h < 0).any() else h for key, h in self.hess.items()}
        decay = {key: given[key] / self.meta.of("ess", key) for key in hess}
        shared = set(decay.values())
        weight_decay = shared.pop() if len(shared) == 1 else decay
        directions = self.directions
        if directions is not None:
            common = None if isinstance(weight_decay, dict) else self.meta.num_examples * weight_decay
            directions = directions.resting(common) if common else None
        return replace(
            self, hess=hess, meta=replace(self.meta, weight_decay=weight_decay), directions=directions
        )

    def site(self) -> Site:
        """What the training data added to the prior, untempered: precision N h, natural mean N (h + delta) m.

        The prior mean is zero. Entries where the noisy h is negative count as no evidence.
        """
        count = self.meta.num_examples
        precision = {key: count * hess.float().clamp_min(0) for key, hess in self.hess.items()}
        natural_mean = {
            key: (value + count * self.meta.of("weight_decay", key)) * self.mean[key].float()
            for key, value in precision.items()
        }
        return Site(precision, natural_mean)

    def summary(self) -> dict[str, Any]:
        """Facts for a person: size, settings, spread of the posterior, health in words."""
        stochastic = sum(h.numel() for h in self.hess.values())
        facts: dict[str, Any] = {
            "kind": "posterior" if self.has_hess else "plain PEFT adapter",
            "peft_type": self.adapter_config.get("peft_type"),
            "base_model": self.meta.base_model.get("id")
            or self.adapter_config.get("base_model_name_or_path"),
            "tensors": len(self.mean),
            "parameters": sum(m.numel() for m in self.mean.values()),
            "stochastic_parameters": stochastic,
        }
        if self.has_hess:
            facts |= {
                "num_examples": self.meta.num_examples,
                "ess": self.meta.ess,
                "temperature": self.temperature,
                "weight_decay": self.meta.weight_decay,
                "steps": self.meta.steps,
            }
            facts |= describe_health(self.mean, self.hess, self.std(), self.meta)
        return facts


def _copy_into(live: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for key, tensor in live.items():
            tensor.copy_(values[key])
