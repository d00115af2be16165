"""Progress bars, shown on terminals and in notebooks but not in log files."""

import sys
import warnings
from collections.abc import Iterable
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():  # kernels without ipywidgets get bars of text, and no warning
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

# tqdm.auto is the class for notebooks if a Jupyter kernel with widgets is running.
_HAS_WIDGETS = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)


class _OneLine(tqdm):  # type: ignore[misc]
    """A text bar for notebooks, where nested bars share a line because the cursor cannot move up.

    Only the outermost bar stays when it is done, as on terminals.
    """

    def moveto(self, n: int) -> None:
        """Does nothing, so that the bar stays in its line."""


def progress_bar(iterable: Iterable[Any] | None = None, *, show: bool | None, **how: Any) -> Any:
    """A tqdm progress bar over an iterable, or a bar that the caller updates.

    Arguments:
        iterable: The items to count; None for a bar that the caller updates.
        show: Whether to show the bar; None shows it on terminals and in notebooks only, unless the
            environment variable `TQDM_DISABLE` is set.
        how: Arguments of :class:`tqdm.auto.tqdm`. A nested bar disappears when it is done.

    Example:
        >>> sum(progress_bar(range(4), show=None, desc="rows"))
        6
    """
    in_cell = type(sys.stderr).__module__ == "ipykernel.iostream"  # stderr is shown below a cell
    is_seen = _HAS_WIDGETS or in_cell or (sys.stderr is not None and sys.stderr.isatty())
    bar = _OneLine if in_cell and not _HAS_WIDGETS else tqdm
    # Without the argument `disable`, tqdm reads TQDM_DISABLE.
    hidden = {} if show is None and is_seen else {"disable": not show}
    return bar(iterable, **{"leave": None, **hidden, **how})
