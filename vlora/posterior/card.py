"""Model card of a posterior folder."""

from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader

from vlora.posterior.hub import is_hub_id

if TYPE_CHECKING:
    from vlora.posterior.posterior import Posterior

__all__ = ["render"]


def render(posterior: "Posterior") -> str:
    """README.md of the folder: lineage, settings, health, and how to load it with and without vlora."""
    environment = Environment(
        loader=PackageLoader("vlora.posterior", "."), trim_blocks=True, lstrip_blocks=True
    )
    summary = posterior.summary()
    return environment.get_template("card.md.j2").render(
        summary=summary,
        base_on_hub=bool(summary["base_model"]) and is_hub_id(str(summary["base_model"])),
        meta=posterior.meta,
        peft=posterior.adapter_config,
        has_curvature=bool(posterior.curvature),
        directions=0 if posterior.directions is None else len(posterior.directions.values),
    )
