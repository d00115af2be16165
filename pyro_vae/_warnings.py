"""Warnings point at the line of the user's that led to them, whatever stands between."""

import sys
import warnings

# What a warning of ours passes through on its way up: it says nothing to who wrote the call.
_PASSED = {"pyro_vae", "pyro", "torch", "contextlib", "functools"}


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns about the innermost line outside the package and what it runs on."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and _package(frame.f_globals) in _PASSED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _package(names: dict[str, object]) -> str:
    return str(names.get("__name__")).partition(".")[0]
