"""Tensors that stay in their safetensors file until they are asked for, and are not kept afterwards."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from vlora.errors import PosteriorFormatError

__all__ = ["StoredTensors"]

T = TypeVar("T")


class StoredTensors(Mapping[str, Tensor]):
    """A read-only mapping from name to tensor; every access reads the tensor anew.

    The whole Grams of an adapter are larger than all its factors, by n / r, and a merge looks at one module at a time.

    Args:
        path: A safetensors file, which must stay as it is.

    Raises:
        PosteriorFormatError: It cannot be read, or was changed since it was opened; in one line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._now()
        self._keys = dict.fromkeys(self._opened(lambda file: list(file.keys())))

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            raise KeyError(key)
        if self._now() != self._stamp:
            raise PosteriorFormatError(f"{self.path} was changed while it was in use; read the adapter again")
        return self._opened(lambda file: file.get_tensor(key).clone())

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def _opened(self, take: Callable[[Any], T]) -> T:
        """What ``take`` gets from the open file."""
        try:
            with safe_open(self.path, framework="pt") as file:
                return take(file)
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise PosteriorFormatError(
                f"cannot read {self.path}: truncated or damaged ({reason}); copy it again"
            ) from None

    def _now(self) -> tuple[int, ...] | None:
        """What changes when the file does; None where it is gone."""
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns
