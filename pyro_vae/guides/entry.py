"""Guides of any origin that are tied to the rows they were trained on, and new rows for them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .._types import Data, ProgramLike
from ..programs import modules_of
from .climbing import FitRows
from .guide import Guide
from .maps import InferenceMap


def maps_of(guide: ProgramLike) -> list[InferenceMap]:
    """Inference maps of a guide: its own, or those of the guides that it delegates to."""
    modules = (part for module in modules_of(guide) for part in module.modules())
    return list(dict.fromkeys(part.map for part in modules if isinstance(part, Guide)))


def is_tied_to_rows(guide: ProgramLike) -> bool:
    """Whether a guide, or one that it delegates to, answers only for its training rows."""
    return any(map.per_row for map in maps_of(guide))


def row_buffers(guide: ProgramLike) -> list[Tensor]:
    """What belongs to rows: tables with their optimizers."""
    return [buffer for map in maps_of(guide) if map.per_row for buffer in map.buffers()]


def for_new_rows(
    guide: ProgramLike,
    data: Data,
    method: FitRows | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Any:
    """The guide for data it was not trained on: fitted to them if it is tied to rows.

    Arguments:
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The batch tensor, or a tuple of them.
        method: How to fit; see :class:`FitRows`.
        given: Values of the latent sites that all data share.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar.

    Returns:
        A guide that is not tied to rows as it is, else one with parameters for every new row.

    Raises:
        TypeError: If the guide is a module around one that is tied to rows: what that module
            makes of it is not known for new rows.
    """
    if not is_tied_to_rows(guide):
        return guide
    if not isinstance(guide, Guide):
        raise TypeError(
            f"{type(guide).__name__} holds a pv.Guide with free parameters for every training row, "
            "which has no parameters for other data: pass that pv.Guide itself, whose rows are "
            "fitted to new data, or put an amortized guide, pv.Encoder(net), inside"
        )
    return guide.fit_rows(data, method, given=given, seed=seed, progress=progress)
