"""Programs of the kinds that Pyro's users write, each with an independent truth per datum."""

from tests.corpus import (
    counts,
    effects,
    features,
    handlers,
    idioms,
    semi_supervised,
    sequences,
    shared,
    vaes,
)
from tests.corpus.case import PROGRAMS

__all__ = [
    "PROGRAMS",
    "counts",
    "effects",
    "features",
    "handlers",
    "idioms",
    "semi_supervised",
    "sequences",
    "shared",
    "vaes",
]
