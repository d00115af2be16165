r"""Model criticism from marginal likelihoods of held-out data.

Two kinds of error must not be confused. The Monte Carlo error comes from the random draws, on the
same data. The population error comes from the sample of data; it is :math:`s / \sqrt{N}`, with s
the spread over data. Models are compared datum by datum: an image that is hard for both drops out
of the difference.

Why not `arviz.compare`? In ArviZ 0.23 it takes only leave-one-out or WAIC results, and labels its
input as one of those. In ArviZ 1.x it takes pointwise densities without a label, which
:func:`elpd_data` makes; but it knows one kind of error, and its stacking weights exponentiate log
densities per datum, which underflows for images. So :func:`compare_models` makes its own table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import stats
from ._arguments import check_public
from ._types import Estimate
from .evidence import LogMarginal
from .results import Doubts, MeanOverData, PerDatum, Result, either


def bits_per_dimension(
    log_marginal: LogMarginal,
    num_dimensions: int,
    log_scale: float | Float[Tensor, " batch"] = 0.0,
) -> MeanOverData:
    r"""Negative log likelihood in bits per entry of a datum.

    .. math:: -\frac{1}{D \log 2} \left(\frac{1}{N} \sum_n \log p(y_n) - \log s_n\right)

    For densities it depends on the unit of the data and may be negative, unlike for discrete data.

    Arguments:
        log_marginal: Estimates per datum, in nats.
        num_dimensions: Entries of a datum, :math:`D`.
        log_scale: If the model saw `y / scale` entry by entry, the sum of the logarithms of the
            scales over the entries of a datum: `784 * log(256)` for images of 256 grey levels that
            were divided by 256, to get bits in the unit of a grey level.

    Returns:
        Bits per dimension, with both errors. A lower bound on log p(y) gives an upper bound here.

    Raises:
        ValueError: If there is no dimension, or fewer than two data.

    Example:
        >>> one = torch.ones(2)
        >>> lml = LogMarginal(-2 * one, 0.1 * one, one, one, torch.tensor([10, 10]))
        >>> bits_per_dimension(lml, 2).value
        tensor(1.4427, dtype=torch.float64)
    """
    if num_dimensions < 1:
        raise ValueError(f"num_dimensions is the number of entries per datum, got {num_dimensions}")
    unit = num_dimensions * math.log(2)
    value = (log_scale - log_marginal.value.double()) / unit
    bits = Estimate(value, log_marginal.error.double() / unit)
    return MeanOverData.over(bits, log_marginal.reliable)


def _require_spread(num_data: int) -> None:
    if num_data < 2:
        raise ValueError(f"a standard error over data needs at least 2 data, got {num_data}")


@dataclass(frozen=True, repr=False)
class PairedDifference(PerDatum):
    """One estimate per datum minus another on the same data, in nats.

    Arguments:
        value: The difference, `(batch,)`.
        error: Its Monte Carlo error.
        doubts: Data for which one of the two is in doubt, by reason.
    """

    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    doubts: Doubts

    @property
    def mean(self) -> MeanOverData:
        """Mean over data, with the errors due to the draws and to the sample of data."""
        return MeanOverData.over(self.estimate, self.reliable)

    def summary(self) -> str:
        """The mean, its errors, and how many data can be trusted."""
        value, error, population = map(float, (*self.mean, self.mean.population_error))
        return (
            f"{value:+.3f} nats per datum, ± {population:.3f} from the sample of data, "
            f"of which ± {error:.3f} from the draws ({self.trust()})"
        )


def paired_difference(first: LogMarginal, second: LogMarginal) -> PairedDifference:
    r"""The difference in log p(y) of two models on the same data.

    .. math:: d_n = \log p_1(y_n) - \log p_2(y_n)

    Both models must have seen the same rows in the same order. Monte Carlo errors are taken as
    independent; for estimates with the same seed, whose draws are correlated, they are slightly too
    large. Two lower bounds may be low by different amounts: if the Monte Carlo errors are not small
    compared with the difference, use more draws.

    Arguments:
        first: Estimates per datum under one model.
        second: Estimates under the other.

    Returns:
        The difference per datum, and its mean with both errors, in nats.

    Raises:
        ValueError: If the numbers of data differ, or there are fewer than two.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC
          (Vehtari, Gelman & Gabry, 2017)
        | https://arxiv.org/abs/1507.04544

    Example:
        >>> one = torch.ones(2)
        >>> better = LogMarginal(-one, 0.3 * one, one, one, torch.tensor([10, 10]))
        >>> worse = LogMarginal(-2 * one, 0.4 * one, one, one, torch.tensor([10, 10]))
        >>> paired_difference(better, worse).estimate
        [1.00 ± 0.50, 1.00 ± 0.50] (2,)
    """
    if len(first.value) != len(second.value):
        raise ValueError(
            f"a paired difference needs the same data in the same order under both models, got "
            f"{len(first.value)} and {len(second.value)} data"
        )
    _require_spread(len(first))
    value, error = stats.difference(first.estimate, second.estimate)
    return PairedDifference(value, error, either(first.doubts, second.doubts))


def elpd_data(log_marginal: LogMarginal, names: Sequence[str] | None = None) -> Any:
    r"""Held-out log p(y) as an ArviZ 1.x expected log pointwise predictive density.

    .. math:: \mathrm{elpd} = \sum_n \log p(y_n), \qquad
        \mathrm{se}^2 = \frac{N}{N - 1} \sum_n (\log p(y_n) - \overline{\log p})^2

    Use it as `arviz.compare({"one": elpd_data(a), "other": elpd_data(b)}, method="BB-pseudo-BMA")`,
    on data that neither model was fitted to: nothing has been left out, there is no effective
    number of parameters (`p` is nan), and the result has no label of a method of cross-validation.
    The weights of the default method, stacking, are meaningless if log densities are below about
    -700.

    Arguments:
        log_marginal: Estimates per datum, of held-out data.
        names: Labels of the data; by default numbers from 0.

    Returns:
        `arviz.ELPDData`, in nats, of the whole data set. The error is that of sampling the data,
        which includes the Monte Carlo error; `warning` says whether some estimate cannot be
        trusted.

    Raises:
        RuntimeError: Under ArviZ 0.23, which would call these numbers leave-one-out.
        ValueError: If there are fewer than two data, or the names are not one per datum.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC
          (Vehtari, Gelman & Gabry, 2017)
        | https://arxiv.org/abs/1507.04544
    """
    if int(version("arviz").split(".")[0]) < 1:
        raise RuntimeError(
            f"ArviZ {version('arviz')} calls every pointwise density leave-one-out or WAIC, and "
            "held-out log p(y) is neither: use pv.criticism.compare_models, or ArviZ 1"
        )
    value = log_marginal.value.detach().double().cpu()
    if names is not None and len(names) != len(value):
        raise ValueError(f"names= needs one per datum: expected {len(value)}, got {len(names)}")
    labels = np.arange(len(value)) if names is None else np.array(names)
    mean = stats.population_mean(value)
    return import_module("arviz").ELPDData(
        elpd=float(value.sum()),
        se=float(mean.error) * len(value),
        p=math.nan,
        n_samples=int(log_marginal.num_samples.max()),
        n_data_points=len(value),
        scale="log",
        warning=not bool(log_marginal.reliable.all()),
        good_k=None,
        elpd_i=import_module("xarray").DataArray(
            value.numpy(), dims="datum", coords={"datum": labels}
        ),
    )


@dataclass(frozen=True, repr=False)
class ModelComparison(Result):
    """Held-out log p(y) of several models on the same data, best first.

    Arguments:
        means: Mean log p(y) per datum, by model, in nats, with both errors.
        to_best: Paired difference to the best model, by model; its mean is at most zero.
        unreliable: Number of data with an estimate that cannot be trusted, by model.
    """

    means: Mapping[str, MeanOverData]
    to_best: Mapping[str, PairedDifference]
    unreliable: Mapping[str, int]

    def plot(self) -> Any:
        """Mean log p of every model, with the error due to the sample of data; needs matplotlib."""
        from .plots import plot_comparison

        means = {n: {"log p": (m.value, m.population_error)} for n, m in self.means.items()}
        return plot_comparison(means)

    def summary(self) -> str:
        """The table, in nats per datum."""
        width = max(len("model"), *(len(name) for name in self.means))
        head = "log p(y)  ± draws   ± data  to best  ± draws   ± data  unreliable"
        return "\n".join(
            [f"{'model':{width}}  {head}", *(self._line(n, width) for n in self.means)]
        )

    def _line(self, name: str, width: int) -> str:
        means = (self.means[name], self.to_best[name].mean)
        numbers = [float(part) for m in means for part in (*m, m.population_error)]
        columns = "  ".join(f"{number:8.3f}" for number in numbers)
        return f"{name:{width}}  {columns}  {self.unreliable[name]:10d}"


def compare_models(log_marginals: Mapping[str, LogMarginal]) -> ModelComparison:
    """Ranks models by their mean log p(y) of the same held-out data.

    Arguments:
        log_marginals: Estimates per datum, by model, of the same rows in the same order.

    Returns:
        Means, and paired differences to the best model, with both errors; best first.

    Raises:
        ValueError: If there are fewer than two models, or their numbers of data differ.

    Example:
        >>> one = torch.ones(2)
        >>> lmls = {
        ...     name: LogMarginal(value * one, 0.1 * one, one, one, torch.tensor([10, 10]))
        ...     for name, value in {"linear": -2.0, "deep": -1.0}.items()
        ... }
        >>> print(compare_models(lmls).summary())
        model   log p(y)  ± draws   ± data  to best  ± draws   ± data  unreliable
        deep      -1.000     0.071     0.000     0.000     0.000     0.000           0
        linear    -2.000     0.071     0.000    -1.000     0.100     0.000           0
    """
    if len(log_marginals) < 2:
        raise ValueError(f"a comparison needs at least 2 models, got {sorted(log_marginals)}")
    order = sorted(log_marginals, key=lambda name: -float(log_marginals[name].mean.value))
    best = log_marginals[order[0]]
    pairs = {name: paired_difference(log_marginals[name], best) for name in order}
    return ModelComparison(
        {name: _mean(log_marginals[name]) for name in order},
        # The difference of the best model to itself has no error.
        {
            name: pair if place else replace(pair, error=torch.zeros_like(pair.error))
            for place, (name, pair) in enumerate(pairs.items())
        },
        {name: int((~log_marginals[name].reliable).sum()) for name in order},
    )


def _mean(log_marginal: LogMarginal) -> MeanOverData:
    return MeanOverData.over(log_marginal.estimate, log_marginal.reliable)


check_public(globals())
