r"""Model criticism from marginal likelihoods of held-out data.

Two kinds of error must not be confused. The Monte Carlo error is due to the random draws, for given
data. The population error is due to the sample of data: it is :math:`s / \sqrt{N}` for :math:`N`
data whose log p(y) have the standard deviation :math:`s`. Models are compared datum by datum, so an
image that is hard for both models hardly affects the difference.

Why not `arviz.compare`? In ArviZ 0.23 this function accepts only leave-one-out or WAIC results, and
labels its input as one of these. In ArviZ 1.x it also accepts pointwise densities without a label,
as returned by :func:`elpd_data`. But it does not separate the two kinds of error. Its stacking
weights exponentiate log densities per datum, and these exponentials underflow for images. So
:func:`compare_models` has its own table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from . import stats
from ._arguments import check_public
from ._types import Estimate
from .evidence import LogMarginal
from .formatting import count_of
from .results import Doubts, MeanOverData, PerDatum, Result, either
from .stats.chains import arviz_generation

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def bits_per_dimension(
    log_marginal: LogMarginal,
    num_dimensions: int,
    log_scale: float | Float[Tensor, " batch"] = 0.0,
) -> MeanOverData:
    r"""Converts log p(y) to a negative log likelihood in bits per dimension.

    .. math:: -\frac{1}{D \log 2} \frac{1}{N} \sum_n \left(\log p(y_n) + c_n\right)

    For continuous data the result depends on the data's unit and can be negative.

    Arguments:
        log_marginal: Estimates of log p(y) per datum, in nats.
        num_dimensions: Number of entries of a datum, :math:`D`.
        log_scale: Nats to add to the log density of each datum, :math:`c_n`, to get the log density
            in the data's own units, such as the `log_scale` of a :class:`pyro_vae.data.Dataset`.
            For images of 784 pixels that were divided by 256, it is `-784 * log(256)`.

    Returns:
        The mean number of bits per dimension, with the errors due to draws and to the sample of
        data. If log p(y) is a lower bound, the result is an upper bound.

    Raises:
        ValueError: If `num_dimensions` is below 1, or if there are fewer than two data.

    Example:
        >>> one = torch.ones(2)
        >>> lml = LogMarginal(-2 * one, 0.1 * one, one, one, torch.tensor([10, 10]))
        >>> bits_per_dimension(lml, 2).value
        tensor(1.4427, dtype=torch.float64)
    """
    unit = num_dimensions * math.log(2)
    value = -(log_marginal.value.double() + log_scale) / unit
    bits = Estimate(value, log_marginal.error.double() / unit)
    return MeanOverData.over(bits, log_marginal.reliable)


@dataclass(frozen=True, repr=False)
class PairedDifference(PerDatum):
    """The difference of two estimates of log p(y) for the same data.

    Arguments:
        value: First estimate minus second, `(batch,)`, in nats.
        error: Monte Carlo error of the difference, `(batch,)`, in nats.
        doubts: Reasons not to trust the difference, each with a mask of the data that the reason
            applies to. They include every doubt about either of the two estimates.
    """

    value: Float[Tensor, " batch"]
    error: Float[Tensor, " batch"]
    doubts: Doubts

    @property
    def mean(self) -> MeanOverData:
        """Mean difference over data, with the errors due to draws and to the sample of data."""
        return MeanOverData.over(self.estimate, self.reliable)

    def summary(self) -> str:
        """Returns a line with the mean difference, its errors and the verdict."""
        value, error, population = map(float, (*self.mean, self.mean.population_error))
        return (
            f"{value:+.3f} nats per datum, ± {population:.3f} from the sample of data and the "
            f"draws, ± {error:.3f} from the draws alone; {self.trust()}"
        )


def paired_difference(first: LogMarginal, second: LogMarginal) -> PairedDifference:
    r"""Computes the difference in log p(y) between two models, per datum.

    .. math:: d_n = \log p_1(y_n) - \log p_2(y_n)

    Both estimates must be for the same rows in the same order. Their Monte Carlo errors are
    assumed to be independent. If both have the same seed, their draws are correlated, and the error
    of the difference is slightly too large. Both estimates may be too low on average, by different
    amounts, which the error does not include. More draws make these amounts smaller: use more draws
    if the Monte Carlo errors are not small compared with the difference.

    Arguments:
        first: Estimates of log p(y) under the first model.
        second: Estimates of log p(y) under the second model.

    Returns:
        The difference of every datum, in nats. Its `mean` has the errors due to draws and to the
        sample of data.

    Raises:
        ValueError: If the numbers of data differ, or if there are fewer than two data.

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
            "`first` and `second` must be for the same data in the same order; got "
            f"{len(first.value)} and {count_of(len(second.value), 'datum')}: evaluate both models "
            "on the same data"
        )
    if len(first) < 2:
        raise ValueError(
            f"a standard error over data requires at least 2 data; got {len(first)}: pass the "
            "results for more data"
        )
    value, error = stats.difference(first.estimate, second.estimate)
    return PairedDifference(value, error, either(first.doubts, second.doubts))


def elpd_data(log_marginal: LogMarginal, names: Sequence[str] | None = None) -> Any:
    r"""Converts held-out log p(y) to ArviZ 1.x's expected log pointwise predictive density.

    .. math:: \mathrm{elpd} = \sum_n \log p(y_n), \qquad
        \mathrm{se}^2 = \frac{N}{N - 1} \sum_n (\log p(y_n) - \overline{\log p})^2

    Compare models by `arviz.compare({"one": elpd_data(a), "other": elpd_data(b)},
    method="BB-pseudo-BMA")`, on data that neither model was trained on. This is not
    cross-validation: the result does not name a method such as leave-one-out, and its effective
    number of parameters, `p`, is nan. The weights of ArviZ's default method, stacking, are
    meaningless if log densities are below about -700.

    Arguments:
        log_marginal: Estimates of log p(y) per datum, for held-out data.
        names: Labels of the data, one per datum; by default 0, 1, ...

    Returns:
        `arviz.ELPDData` for the whole data set, in nats. The error is due to the sample of data and
        includes the Monte Carlo error. `warning` is true if any estimate cannot be trusted.

    Raises:
        RuntimeError: For ArviZ 0.23, which would label these numbers as leave-one-out.
        ValueError: If there are fewer than two data, or if there is not one name per datum.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC
          (Vehtari, Gelman & Gabry, 2017)
        | https://arxiv.org/abs/1507.04544
    """
    if arviz_generation() < 1:
        raise RuntimeError(
            f"ArviZ {version('arviz')} labels every pointwise density as leave-one-out or WAIC, "
            "but held-out log p(y) is neither: call pv.criticism.compare_models, or install ArviZ 1"
        )
    value = log_marginal.value.detach().double().cpu()
    if names is not None and len(names) != len(value):
        raise ValueError(
            f"`names` must have one name per datum, {count_of(len(value), 'name')} in "
            f"all; got {len(names)}: pass one name for each datum"
        )
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
    """Held-out log p(y) of several models on the same data, with the best model first.

    Arguments:
        means: Mean log p(y) of each model, in nats per datum, with the errors due to draws and to
            the sample of data.
        to_best: Log p(y) of each model minus that of the best model, per datum. The mean over
            data is at most zero.
        unreliable: Number of data whose estimate cannot be trusted, for each model.
    """

    means: Mapping[str, MeanOverData]
    to_best: Mapping[str, PairedDifference]
    unreliable: Mapping[str, int]

    def plot(self) -> "Axes":
        """Plots mean log p(y) by model, with errors due to the sample of data; needs matplotlib."""
        from .plots import plot_comparison

        means = {n: {"log p": (m.value, m.population_error)} for n, m in self.means.items()}
        return plot_comparison(means)

    def summary(self) -> str:
        """Returns a table of the models, in nats per datum."""
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
    """Ranks models by their mean log p(y) on the same held-out data.

    Arguments:
        log_marginals: Estimates of log p(y) per datum, by name of the model, all for the same rows
            in the same order.

    Returns:
        Means, and paired differences from the best model, with the errors due to draws and to the
        sample of data. The best model is first.

    Raises:
        ValueError: If there are fewer than two models, or if their numbers of data differ.

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
        raise ValueError(
            f"`log_marginals` must have at least 2 models; got {sorted(log_marginals)}: pass the "
            "results of further models"
        )
    order = sorted(log_marginals, key=lambda name: -float(log_marginals[name].mean.value))
    best = log_marginals[order[0]]
    pairs = {name: paired_difference(log_marginals[name], best) for name in order}
    # The best model's difference from itself is exactly 0.
    pairs[order[0]] = replace(pairs[order[0]], error=torch.zeros_like(best.error))
    means = {
        name: MeanOverData.over(log_marginals[name].estimate, log_marginals[name].reliable)
        for name in order
    }
    return ModelComparison(means, pairs, {name: mean.num_doubted for name, mean in means.items()})


check_public(globals())
