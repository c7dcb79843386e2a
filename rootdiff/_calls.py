"""How often NumPy calls the user's residual, and how often a solve may."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Calls:
    """A function, the count of its calls, and how many a solve may have made when it takes another step, if limited."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.count = function, 0
        self.most: int | None = None

    def __call__(self, *args: Any) -> Any:
        self.count += 1
        return self.function(*args)

    def spent(self) -> bool:
        """Return whether no more are left."""
        return self.most is not None and self.count >= self.most
