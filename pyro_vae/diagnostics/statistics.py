"""Statistics of a data set for predictive checks."""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from .._types import Batch

Statistic: TypeAlias = Callable[[Batch], Tensor]
"""A function from a data set, the tensors that the model takes, to a number or a vector."""


def default_statistics(batch: Batch, observed: tuple[int, ...] = (0,)) -> dict[str, Statistic]:
    """Statistics for any data: of all observed entries, and of each feature.

    Arguments:
        batch: The data set.
        observed: Which of its tensors the model observes.

    Returns:
        Mean, standard deviation, smallest and largest of all entries, share of zeros; and, if a
        datum has several features, the vectors of their means and standard deviations.

    Example:
        >>> y = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
        >>> statistics = default_statistics((y,))
        >>> float(statistics["mean"]((y,))), statistics["means of features"]((y,)).tolist()
        (1.0, [0.0, 2.0])
    """
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "mean": torch.mean,
        "sd": torch.std,
        "smallest": torch.min,
        "largest": torch.max,
        "share of zeros": _share_of_zeros,
    }
    of_features: dict[str, Callable[[Tensor], Tensor]] = {
        "means of features": partial(torch.nanmean, dim=0),
        "sds of features": _column_sds,
    }
    chosen: dict[str, Statistic] = {}
    for index in observed:
        suffix = "" if len(observed) == 1 else f" (tensor {index})"
        for name, function in functions.items():
            chosen[name + suffix] = partial(_of_part, function, index)
        if batch[index][0].numel() > 1:
            for name, by_feature in of_features.items():
                chosen[name + suffix] = partial(_of_features, by_feature, index)
    return chosen


def _share_of_zeros(part: Tensor) -> Tensor:
    return (part == 0).double().mean()


def _of_part(function: Callable[[Tensor], Tensor], index: int, batch: Batch) -> Tensor:
    part = batch[index].double()
    return function(part[~part.isnan()])


def _of_features(function: Callable[[Tensor], Tensor], index: int, batch: Batch) -> Tensor:
    return function(batch[index].double().flatten(1))


def _column_sds(part: Tensor) -> Tensor:
    """Standard deviations of the observed entries."""
    observed = (~part.isnan()).sum(dim=0)
    return ((part - part.nanmean(dim=0)).square().nansum(dim=0) / (observed - 1)).sqrt()
