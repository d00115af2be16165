"""Progress bars, shown on terminals and in notebooks but not in log files."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

# tqdm.auto is the class for notebooks if a Jupyter kernel with widgets is running.
_IN_NOTEBOOK = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)


def progress_bar(iterable: Iterable[Any] | None = None, *, show: bool | None, **how: Any) -> Any:
    """A tqdm progress bar over an iterable, or a bar that the caller updates.

    Arguments:
        iterable: The items to count; None for a bar that the caller updates.
        show: Whether to show the bar; None shows it on terminals and in notebooks only.
        how: Arguments of :class:`tqdm.auto.tqdm`. A nested bar disappears when it is done.

    Example:
        >>> sum(progress_bar(range(4), show=None, desc="rows"))
        6
    """
    if show is None:
        show = _IN_NOTEBOOK or (sys.stderr is not None and sys.stderr.isatty())
    return tqdm(iterable, disable=not show, **{"leave": None, **how})
