"""How often NumPy calls the user's residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Calls:
    """A function, and the count of its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.function(*args)
