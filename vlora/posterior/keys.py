"""Which parameter of a PEFT model belongs to which key of an adapter file.

PEFT drops two things from a parameter's name when it saves: the adapter name
(``lora_A.default.weight`` becomes ``lora_A.weight``) and the wrapper of fully trained modules
(``classifier.modules_to_save.default.weight`` becomes ``classifier.weight``).
"""

from collections.abc import Iterable

from torch import Tensor, nn

from vlora.errors import PosteriorFormatError

__all__ = ["adapter_tensors", "saved_key"]


def saved_key(name: str, adapter_name: str) -> str:
    """Key under which PEFT saves the parameter ``name`` of an adapter."""
    parts = [part for part in name.split(".") if part not in (adapter_name, "modules_to_save")]
    if parts[-2:] == [
        "lora_magnitude_vector",
        "weight",
    ]:  # DoRA's magnitude is a module in memory, a tensor on disk
        parts.pop()
    return ".".join(parts)


def adapter_tensors(
    model: nn.Module, keys: Iterable[str], adapter_name: str = "default"
) -> dict[str, Tensor]:
    """Live parameters (or buffers) of a PEFT model for the keys of an adapter file.

    Args:
        model: PEFT model that carries the adapter.
        keys: Keys as in ``adapter_model.safetensors``.
        adapter_name: Name under which the adapter is loaded.

    Returns:
        Key -> tensor of the model (not a copy).

    Raises:
        PosteriorFormatError: The model has no tensor for a key.
    """
    live: dict[str, Tensor] = {}
    for name, tensor in (*model.named_buffers(), *model.named_parameters()):
        marked = f".{adapter_name}." in f"{name}." or ".modules_to_save." in name
        if marked or saved_key(name, adapter_name) not in live:
            live[saved_key(name, adapter_name)] = tensor
    wanted = list(keys)
    missing = [key for key in wanted if key not in live]
    if missing:
        raise PosteriorFormatError(
            f"the model has no tensor for {len(missing)} of {len(wanted)} adapter keys, first {missing[0]!r}; "
            f"is the adapter loaded under the name {adapter_name!r}, and is this its base model?"
        )
    return {key: live[key] for key in wanted}
