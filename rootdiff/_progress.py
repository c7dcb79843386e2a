"""One line on standard error that moves while a solve runs, by tqdm."""

from __future__ import annotations

from collections.abc import Callable

from rootdiff._errors import ArgumentError


def shown_by_tqdm() -> Callable[[str, float | None], None]:
    """Return what shows the words about a step, and which part of the way is behind it where there is a way."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        raise ArgumentError(
            "progress: it is shown by tqdm, which is not installed. Install it: pip install tqdm. Or take a callback."
        ) from None
    bar = tqdm(unit="step")  # it closes when the solve lets go of it

    def show(words: str, part: float | None) -> None:
        if part is None:
            bar.update()
        else:
            bar.total, bar.n, bar.unit = 100, round(100 * part), "%"
        bar.set_postfix_str(words)

    return show
