"""Progress bars: shown to people, on terminals and in notebooks, and silent in logs."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# tqdm.auto takes the class for notebooks where a Jupyter kernel runs with its widgets.
_IN_NOTEBOOK = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)


def progress_bar(iterable: Iterable[Any] | None = None, *, show: bool | None, **how: Any) -> Any:
    """A tqdm progress bar over an iterable, or one updated by hand.

    Arguments:
        iterable: The items to count.
        show: Whether to show it; None shows it on terminals and in notebooks only.
        how: Arguments of :class:`tqdm.auto.tqdm`. A nested bar disappears when it is done.

    Example:
        >>> sum(progress_bar(range(4), show=None, desc="rows"))
        6
    """
    if show is None:
        show = _IN_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())
    return tqdm(iterable, disable=not show, **{"leave": None, **how})
