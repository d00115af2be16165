"""Warnings that point at a line of the user's code, however deep in the library they arise."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from .formatting import count_of, first_few

# Packages that a warning never points into, because their lines mean nothing to the caller.
_PASSED = {"pyro_vae", "pyro", "torch", "contextlib", "functools", "jaxtyping", "beartype"}

# Warnings about columns, held back until the end of `once_for_all_columns`: pairs of the column's
# name and the message, by the line of code that gave them. None outside this block.
_held: ContextVar[dict[tuple[str, int], list[tuple[str, str]]] | None] = ContextVar(
    "held", default=None
)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issues a warning that points at the innermost line outside this package, Pyro and torch."""
    level, frame = 2, sys._getframe(1)
    while (
        frame.f_back is not None
        and str(frame.f_globals.get("__name__")).partition(".")[0] in _PASSED
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def warn_of_column(name: str, message: str) -> None:
    """Warns about a column; inside :func:`once_for_all_columns`, only at the end of the block."""
    held, caller = _held.get(), sys._getframe(1)
    if held is None:
        warn(message)
    else:
        held.setdefault((caller.f_code.co_filename, caller.f_lineno), []).append((name, message))


@contextmanager
def once_for_all_columns() -> Iterator[None]:
    """Issues one warning for all columns that have the same problem.

    It is the warning about the first of these columns, followed by the names of the others.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     with once_for_all_columns():
        ...         for name in "abc":
        ...             warn_of_column(name, f"column '{name}' is odd")
        >>> [str(one.message) for one in caught]
        ["column 'a' is odd. The same holds for 2 more columns: 'b', 'c'"]
    """
    if _held.get() is not None:
        yield
        return
    found: dict[tuple[str, int], list[tuple[str, str]]] = {}
    token = _held.set(found)
    try:
        yield
    finally:
        _held.reset(token)
        for (first, message), *others in found.values():
            names = [name for name in dict(others) if name != first]
            more = f". The same holds for {count_of(len(names), 'more column')}: "
            warn(message + (more + first_few(map(repr, names)) if names else ""))
