r"""The interface of likelihoods, which turn a decoder's output into :math:`p(y \mid z)`.

A likelihood turns the decoder's output for a row into one independent distribution per feature. It
also gives the means of these distributions, and refuses data outside their support.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints

from .._types import Distribution, Size
from ..formatting import count_of
from ..nets.scaling import OutputScale
from ..programs import PartlyObserved


@runtime_checkable
class PerFeature(Protocol):
    """A module whose learned parameters are shared by all features, or separate for each feature.

    `shape` is `()` if they are shared, and otherwise broadcasts to the shape of a datum.
    """

    shape: tuple[int, ...]


class Start(NamedTuple):
    """Initial outputs of a decoder, and the unit of each output.

    `unit` is `None` if the unit of every output is 1.
    """

    output: Tensor
    unit: Tensor | None


class Likelihood(nn.Module):
    r"""The base of likelihoods; subclasses must define :meth:`distribution`.

    .. math:: \log p(y \mid z) = \sum_{d \in O} \log p(y_d \mid \eta_d(z))

    where :math:`\eta_d` is the decoder's output for feature d, and :math:`O` are the observed
    features. An entry that is nan is missing and drops out of the sum. Further tensors of the
    batch, such as an exposure, are passed as `given`.
    """

    outputs = 1
    """Number of decoder outputs per feature, stacked along the first axis of the datum."""

    takes = 0
    """Number of tensors that the likelihood may take besides the data, such as an exposure."""

    any_units: bool = True
    """Whether the data may be in any units; if not, the data must be standardized."""

    placeholder: ClassVar[float] = 0.0
    """A value in the support that replaces missing entries, which add nothing to log p."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape that the decoder's output must have, given the shape of a datum."""
        return (self.outputs * shape[0], *shape[1:])

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Returns independent distributions of the features, shaped like a batch of data."""
        raise NotImplementedError

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Returns the mean of p(y | z)."""
        return self.distribution(output, *given).mean

    def forward(self, output: Float[Tensor, "batch *output"], *given: Tensor) -> Distribution:
        """Returns p(y | z), of batch shape `(batch,)`; the event is a whole datum."""
        self.check_given(given)
        features = PartlyObserved(self.distribution(output, *given), self.fill(output))
        return features.to_event(len(features.batch_shape) - 1)

    def check_given(self, given: tuple[Tensor, ...]) -> None:
        """Refuses tensors in addition to the data if there are more than the likelihood takes."""
        if len(given) > self.takes:
            raise ValueError(
                f"{type(self).__name__} takes {count_of(self.takes, 'tensor')} besides the data; "
                f"got {count_of(len(given), 'tensor')} of shapes "
                f"{[tuple(part.shape) for part in given]}: pass an exposure only to likelihoods of "
                "counts, and pass covariates to models.ConditionalVAE"
            )

    def check_learned(self, shape: tuple[int, ...]) -> None:
        """Refuses learned parameters, such as a sigma, that do not fit the shape of a datum."""
        for part in (self, *self.children()):
            if isinstance(part, Likelihood) and part is not self:
                part.check_learned(shape)
                continue
            own = part.shape if isinstance(part, PerFeature) else ()
            pairs = zip(reversed(own), reversed(shape), strict=False)
            if len(own) > len(shape) or any(mine not in (1, size) for mine, size in pairs):
                raise ValueError(
                    f"{type(part).__name__} has shape {own}, but a datum has shape {shape}: pass "
                    f"`shape={shape}`, or leave out `shape`, so that all features share one value"
                )

    def fill(self, output: Tensor) -> Tensor | float:
        """Returns the placeholder for missing entries: a number, or one number per feature."""
        return self.placeholder

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data outside the support; the message names the first refused entries."""

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns a decoder output that does not depend on z and fits each column of the data.

        If this output is the bias of the decoder's last layer, training starts at or near the best
        model that ignores z; see :func:`start_from`. Missing entries are left out.
        """
        return y.new_zeros(self.output_shape(tuple(y.shape[1:])))

    def start_units(
        self, y: Float[Tensor, "batch *datum"], spread: Float[Tensor, "*datum"], *given: Tensor
    ) -> Start:
        """Sets the unit of learned noise; returns initial decoder outputs and their units.

        Called before training if the columns are far from unit scale. Outputs such as log odds keep
        the unit 1.

        Arguments:
            y: Some rows of the data.
            spread: The standard deviation of each column.
            given: Further tensors of the batch that the likelihood takes.
        """
        return Start(self.start(y, *given), None)

    def warn_of_floor(self, spread: Float[Tensor, "*datum"], names: Sequence[str] = ()) -> None:
        """Warns if a learned sigma cannot fall to a column's spread, because its floor is higher.

        Called after :meth:`start_units`.

        Arguments:
            spread: The standard deviation of each column.
            names: Names of the columns, for the warning; without names, the warning gives the
                position of the column.
        """

    def start_noise(self, sd: Float[Tensor, "*datum"], y: Float[Tensor, "batch *datum"]) -> None:
        """Sets the learned noise of y given z, if the likelihood has any.

        Arguments:
            sd: Standard deviation, given z, of log y under a log-normal likelihood, of
                log(1 + y) under a likelihood of counts, and of y itself otherwise.
            y: Training data.
        """


def has_own_density(likelihood: Likelihood) -> bool:
    """Whether log p(y | z) has terms besides the features' densities, as under `SelfMasking`.

    Such a likelihood cannot be part of a `Mixed` or of a `SequentialVAE`, because these use only
    the distributions of the features.
    """
    return type(likelihood).forward is not Likelihood.forward


class Features(dist.TorchDistribution):
    """Independent distributions of features; a subclass defines `log_prob`, `sample` and `mean`.

    Data are not validated here: `Likelihood.check` refuses invalid data once, before training.

    Arguments:
        parameters: Tensors that broadcast to the shape of a batch of data, followed by `trailing`
            further dimensions; for example, one dimension for categories.
    """

    trailing: ClassVar[int] = 0
    values: ClassVar[constraints.Constraint] = constraints.real
    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # any number is allowed

    def __init__(self, *parameters: Tensor) -> None:
        self.parameters = torch.broadcast_tensors(*parameters)
        shape = self.parameters[0].shape
        super().__init__(shape[: len(shape) - self.trailing], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Returns the support of the data."""
        return self.values

    def expand(self, batch_shape: Size, _instance: object = None) -> "Features":
        """Returns the same distributions with more batch dimensions."""
        keep = len(self.batch_shape)
        return type(self)(
            *(part.expand(*batch_shape, *part.shape[keep:]) for part in self.parameters)
        )


def start_from(decoder: nn.Module, start: Tensor) -> None:
    """Sets the bias of a decoder's last linear layer, so that training starts from a given output.

    Arguments:
        decoder: A module that ends in a linear layer, such as :class:`pyro_vae.nets.MLPDecoder`.
        start: The decoder's output for one datum, as `Likelihood.start` returns it.

    Raises:
        ValueError: If the last linear layer has no bias of the size of `start`.

    Example:
        >>> decoder, y = nn.Linear(2, 3), torch.tensor([[1.0, 2.0, 3.0], [1.0, float("nan"), 5.0]])
        >>> from pyro_vae.likelihoods import Gaussian
        >>> start_from(decoder, Gaussian().start(y))
        >>> decoder.bias.tolist()
        [1.0, 2.0, 4.0]
    """
    layers = [layer for layer in decoder.modules() if isinstance(layer, nn.Linear)]
    bias = layers[-1].bias if layers else None
    if bias is None or bias.numel() != start.numel():
        found = "no bias" if bias is None else f"{count_of(bias.numel(), 'number')}"
        raise ValueError(
            "the decoder's last linear layer must have a bias of "
            f"{count_of(start.numel(), 'number')}, as many as `start` has; got {found}: set the "
            "initial bias in your decoder's own code"
        )
    scales = [part for part in decoder.modules() if isinstance(part, OutputScale)]
    with torch.no_grad():
        bias.copy_((scales[-1].standardized(start) if scales else start).flatten())


def column_means(y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Returns the mean of each column's observed entries; 0 if no entry was observed."""
    return y.nanmean(dim=0).nan_to_num(nan=0.0)


def column_spreads(y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Returns the sd of each column's observed entries; 0 if no entry was observed."""
    return column_means((y - column_means(y)).square()).sqrt()


def column_shares(hits: Tensor, y: Float[Tensor, "batch *datum"]) -> Float[Tensor, "*datum"]:
    """Returns, for each column, the smoothed share of the observed entries where `hits` is true.

    Half a true and half a false entry are added to each column, because the logit of a share of 0
    or 1 is infinite.
    """
    observed = ~y.isnan()
    return ((hits & observed).sum(dim=0).to(y) + 0.5) / (observed.sum(dim=0).to(y) + 1)


def inverse_of(
    increasing: Callable[[Tensor], Tensor], value: Tensor, low: float, high: float
) -> Tensor:
    """Solves `increasing(x) = value` for x in [low, high], by bisection."""
    lower, upper = torch.full_like(value, low), torch.full_like(value, high)
    for _ in range(50):  # halvings: exact to rounding in float32, and to 1e-13 in float64
        middle = (lower + upper) / 2
        below = increasing(middle) < value
        lower, upper = torch.where(below, middle, lower), torch.where(below, upper, middle)
    return (lower + upper) / 2
