r"""Draws of the latents given a row's observed entries: weighted draws from a proposal.

.. math:: \mathbb{E}[f(z) \mid y_O] \approx \sum_k s_k f(z_k), \qquad
    s_k = \frac{w_k}{\sum_j w_j}, \quad w_k = \frac{p(y_O, z_k)}{q(z_k)}, \quad z_k \sim q

The largest weights are Pareto-smoothed. The guide is only the proposal. Where it has draws, the
weights correct its errors and show how large these errors are. The standard error of a weighted
mean comes from the delta method: :math:`\text{error}^2 = \sum_k s_k^2 (f(z_k) - \bar f)^2`. This
error is too small if the weights have no finite variance, so the effective sample size and Pareto k
are reported, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..evidence import (
    PARETO_SMOOTHED,
    Fitted,
    FromGuide,
    ImportanceSampling,
    Inference,
    LogMarginal,
)
from ..evidence.weights import conditioned, normalized
from ..formatting import count_of
from ..guides import GlobalParameters, Guide
from ..guides.entry import is_tied_to_rows, maps_of
from ..programs import as_batch
from ..programs.missing import has_missing
from ..programs.modes import device_of
from ..programs.pieces import take_rows
from ..programs.structure import partly_observed

_DRAWS = 2000  # per row: with equal weights, errors of means are below 3% of the sd


class WeightedDraws(NamedTuple):
    """Draws of z for some rows, `(draws, rows, latents)`, and their weights, `(draws, rows)`."""

    rows: slice
    z: Tensor
    shares: Tensor
    evidence: LogMarginal


def weighted_draws(
    inference: Inference, estimator: ImportanceSampling, *, seed: int, progress: bool | None
) -> Iterator[WeightedDraws]:
    """Yields weighted draws of z given each row's observed entries, some rows at a time."""
    smoothing = replace(estimator, average=PARETO_SMOOTHED)
    sampling = smoothing.sampling(inference, seed=seed, progress=progress)
    for (rows, z, weights), evidence in sampling.judged_blocks():
        yield WeightedDraws(rows, z, normalized(stats.smoothed(weights.log_weights)), evidence)


def estimator_for(
    guide: ProgramLike | None, estimator: ImportanceSampling | None
) -> ImportanceSampling:
    """Returns the given estimator or, for None, the default estimator with 2,000 draws per row.

    Raises:
        ValueError: If there are too few draws, or if the number of draws depends on a target error.
    """
    if estimator is None:
        return default_estimator(guide, _DRAWS)
    if estimator.until is not None or estimator.num_samples < stats.MIN_TAIL_PARTICLES:
        raise ValueError(
            "`estimator` must make a fixed number of draws per row, and at least "
            f"{stats.MIN_TAIL_PARTICLES} draws; got num_samples={estimator.num_samples} "
            f"and until={estimator.until}: pass, for example, pv.ImportanceSampling({_DRAWS})"
        )
    return estimator


def default_estimator(guide: ProgramLike | None, num_samples: int) -> ImportanceSampling:
    """Returns an estimator that draws from the guide.

    Without a guide, it draws from a Gaussian fitted to the posterior of each row.
    """
    return ImportanceSampling(num_samples, proposal=Fitted() if guide is None else FromGuide())


@contextmanager
def prepared_with_holes(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    seed: int,
    given: Mapping[str, Tensor] | None,
) -> Iterator[Inference]:
    """Checks data that may have missing entries, and yields the input of an estimator.

    Unlike in :func:`pyro_vae.evidence.weights.conditioned`, the guide may be None.
    """
    batch = as_batch(data, device_of(model, guide or model))
    require_holes(model, batch)
    with conditioned(model, guide_for(model, guide, batch, given), batch, seed, given) as ready:
        yield ready


def require_holes(model: ProgramLike, batch: Batch) -> None:
    """Refuses missing entries in the first tensor unless the model accepts them."""
    if has_missing(batch[0]) and 0 not in partly_observed(model, batch):
        raise ValueError(
            "the model accepts no missing entries (nan) in its first tensor: use a likelihood from "
            "pv.likelihoods, or wrap the distribution of the features in "
            "pv.programs.PartlyObserved and call .to_event(...) on the result"
        )


def with_holes(batch: Batch, mask: Bool[Tensor, "*datum"]) -> Batch:
    """Replaces the entries in the mask by nan, in every row of the first tensor."""
    if not bool(mask.any()):
        return batch
    return (batch[0].masked_fill(mask, torch.nan), *batch[1:])


def guide_for(
    model: ProgramLike,
    guide: ProgramLike | None,
    batch: Batch,
    given: Mapping[str, Tensor] | None,
) -> ProgramLike:
    """Returns the guide if it accepts the data; if the guide is None, returns q(z) = N(0, I).

    Raises:
        ValueError: If the guide refuses data with missing entries (the message says what to do), or
            if the guide is None and the values of global sites are not given.
    """
    if guide is None:
        example = take_rows(batch, slice(2))
        fallback = Guide(model, GlobalParameters(), example=example).eval()
        if fallback.shared is not None and given is None:
            raise ValueError(
                "the program has latent sites that all data share, and their values are unknown "
                "without a guide: pass a guide, or `given={'name': value}`"
            )
        return fallback
    if has_missing(batch[0]) and maps_of(guide) and not is_tied_to_rows(guide):
        row = take_rows(batch, slice(1))
        try:
            with conditioned(model, guide, row, 0, given) as (_, posterior, _):
                posterior.mean()
        except ValueError as error:
            error.add_note(
                "Another remedy is to pass None for the guide: a proposal is then fitted to every "
                "row, without an encoder."
            )
            raise
    return guide


def chosen(
    columns: Sequence[int | str], names: Sequence[str] | None, like: Tensor
) -> Bool[Tensor, "*datum"]:
    """Returns a mask of columns that are given by name or by position in the flattened datum.

    Raises:
        ValueError: If no column is given, a column is unknown, or the names do not fit the data.
    """
    places = [_place(column, names, like) for column in columns]
    if not places:
        raise ValueError("`columns` and `on` must each contain at least one column; got none")
    mask = torch.zeros(like[0].numel(), dtype=torch.bool, device=like.device)
    mask[places] = True
    return mask.reshape(like.shape[1:])


def _place(column: int | str, names: Sequence[str] | None, like: Tensor) -> int:
    """Returns the position of a column that is given by its name or by its position.

    Raises:
        ValueError: If the column is unknown, or the names do not fit the data.
    """
    size = like[0].numel()
    if names is not None and (len(names) != size or len(set(names)) != size):
        raise ValueError(
            f"`names` must be {count_of(size, 'different name')}, one per column; got "
            f"{count_of(len(names), 'name')}, of which {len(set(names))} are different"
        )
    if isinstance(column, str):
        if names is None or column not in names:
            known = "pass the columns' `names`" if names is None else f"choose from {list(names)}"
            raise ValueError(f"column {column!r} is unknown: {known}")
        return list(names).index(column)
    if not 0 <= column < size:
        raise ValueError(f"column {column} is unknown: choose a position from 0 to {size - 1}")
    return column


def label_of(column: int | str, names: Sequence[str] | None) -> str:
    """Returns the name of a column."""
    if isinstance(column, str):
        return column
    return names[column] if names is not None else f"column {column}"
