"""An array namespace with some functions of its own."""

from __future__ import annotations

from typing import Any


class Namespace:
    """The functions that a subclass defines; all others are those of its `module`."""

    module: Any

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        setattr(self, name, value)  # found at once the next time
        return value
