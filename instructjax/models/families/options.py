"""Reading the options of a model's configuration, each checked and named when it is wrong."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instructjax.errors import ModelError

# Far more than any model has.
MAX_LAYERS = 10_000
_REQUIRED: Any = object()


class Options:
    """Typed access to a configuration's values; None counts as absent, but in a flag.

    Args:
      values: the options as the file has them.
      file: where they came from, for messages.
      prefix: put before every name ("llama." in GGUF metadata).
      defaults: values of those that the file leaves out; null is not left out.

    >>> Options({"layers": 2, "eps": 1e-5}, Path("config.json")).integer("layers")
    2
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        file: Path,
        prefix: str = "",
        defaults: Mapping[str, Any] = {},
    ) -> None:
        self.values = {**defaults, **values} if defaults else values
        self._written = values
        self._defaults = dict(defaults)
        self.file = file
        self.prefix = prefix
        self.asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        """The value as it is, or the default where it is absent."""
        self.asked.add(name)
        value = self.values.get(self.prefix + name)
        if value is not None:
            return value
        if default is not None and default is not _REQUIRED:
            self._defaults[self.prefix + name] = default
        return default

    def integer(self, name: str, default: int = _REQUIRED) -> int:
        """A positive whole number."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise self.error(name, "must be a positive whole number")
        return value

    def num_layers(self, name: str) -> int:
        """A number of layers, of each of which something may be said: no billion."""
        value = self.integer(name)
        if value > MAX_LAYERS:
            raise self.error(name, f"is more than {MAX_LAYERS:,}")
        return value

    def number(self, name: str, default: float = _REQUIRED) -> float:
        """A positive finite number, of a size that can be computed with."""
        value = self._present(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        if not 0 < value < 1e18:  # nor NaN
            raise self.error(name, "must be a positive finite number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false; None that the file has is false, as PyTorch's models take it."""
        self.asked.add(name)
        value = self.values.get(self.prefix + name, default)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def refuse(self, supported: Mapping[str, tuple[Any, ...]]) -> None:
        """Raise for an option that changes the function and has a value not written here.

        Args:
          supported: for each option the values that are; absence always is.
        """
        for name, values in supported.items():
            value = self.get(name)
            # `in` would take 1 for True and 0 for False
            if value is not None and not any(
                value == v and isinstance(value, bool) == isinstance(v, bool) for v in values
            ):
                known = " or ".join(["absent", *(repr(v) for v in values)])
                raise self.error(name, f"is not supported, only {known}")

    def check_names(self, known: Collection[str], arrays: Collection[str] = ()) -> None:
        """Raise for an option of the prefix that is not known, or an array that should be none.

        Args:
          known: names, without the prefix.
          arrays: those that may have a value for each layer.
        """
        for key, value in self.values.items():
            name = key.removeprefix(self.prefix)
            if not key.startswith(self.prefix):
                continue
            if name not in known:
                raise self.error(name, "is not a supported option")
            if isinstance(value, list | np.ndarray) and name not in arrays:
                raise self.error(name, "is an array, which is not supported")

    def error(self, name: str, problem: str) -> ModelError:
        """An error about one option, with its name and value, or the default that stands for it."""
        key = self.prefix + name
        written = self._written.get(key)
        value = self._defaults.get(key) if written is None else written
        shown = repr(value)
        shown = shown if len(shown) <= 120 else shown[:117] + "..."
        if value is None:
            said = f"`{key}`, which the file does not say,"
        else:
            said = f"`{key}` = {shown}" + (" (the default)" if written is None else "")
        return ModelError(f"{said} {problem}", file=self.file)

    def _present(self, name: str, default: Any) -> Any:
        value = self.get(name, default)
        if value is _REQUIRED:
            raise ModelError(f"`{self.prefix}{name}` is missing", file=self.file)
        return value
