r"""What a likelihood is: from a decoder's output to :math:`p(y \mid z)`.

A likelihood is a value: it turns the output for a row into independent distributions of the
features of a datum, gives their means, and knows which data it can be asked about.
"""

import math
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from .._types import Distribution
from ..programs import PartlyObserved
from .starting import start_from


class Likelihood(nn.Module):
    r"""What a likelihood offers. A subclass defines :meth:`distribution`, and what differs.

    .. math:: \log p(y \mid z) = \sum_{d \in O} \log p(y_d \mid \eta_d(z))

    where :math:`O` are the features that were observed: an entry that is nan was not, and leaves
    the sum. Further tensors of the batch, such as an exposure, are handed on as `given`.
    """

    outputs = 1
    """Numbers a feature that the decoder must give, stacked along the first axis of the datum."""

    takes = 0
    """Further tensors of the batch that it takes; counts take one, their exposure."""

    placeholder: ClassVar[float] = 0.0
    """A value on the support, at which the density of a missing entry is evaluated and dropped."""

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the decoder's output for a datum of this shape."""
        return (self.outputs * shape[0], *shape[1:])

    def distribution(self, output: Tensor, *given: Tensor) -> Distribution:
        """Independent distributions of the features, shaped like a batch of data."""
        raise NotImplementedError

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Mean of p(y | z)."""
        mean: Tensor = self.distribution(output, *given).mean
        return mean

    def forward(self, output: Float[Tensor, "batch *output"], *given: Tensor) -> Distribution:
        """p(y | z) with the datum as its event: `(batch,)` distributions."""
        self.check_given(given)
        features = PartlyObserved(self.distribution(output, *given), self.fill(output))
        return features.to_event(len(features.batch_shape) - 1)

    def check_given(self, given: tuple[Tensor, ...]) -> None:
        """Refuses tensors that would be left unused, without a word."""
        if len(given) > self.takes:
            raise ValueError(
                f"{type(self).__name__} takes {self.takes} tensor(s) beside the data, got "
                f"{len(given)} of shapes {[tuple(part.shape) for part in given]}: an exposure is "
                "for counts, and covariates are for models.ConditionalVAE"
            )

    def fill(self, output: Tensor) -> Tensor | float:
        """The placeholder of every feature, a number or a tensor that broadcasts with the data."""
        return self.placeholder

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses data outside the support, with the first offender and the remedy."""

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """An output, the same for every datum, that suits the columns of some data one by one.

        For the bias of a decoder's last layer, from which training then starts at the best model
        that ignores z, or close to it; see :func:`start_from`. Missing entries are left out.
        """
        return y.new_zeros(self.output_shape(tuple(y.shape[1:])))

    def output_layer(
        self, fan_in: int, shape: int | tuple[int, ...], start: Tensor | None = None
    ) -> nn.Module:
        """A last layer for a decoder of one's own: linear, from its features to what is needed.

        Arguments:
            fan_in: Features that go in.
            shape: Shape of a datum, or its number of features.
            start: Where the bias starts, as :meth:`start` gives it.
        """
        output = self.output_shape((shape,) if isinstance(shape, int) else tuple(shape))
        linear = nn.Linear(fan_in, math.prod(output))
        layer = nn.Sequential(linear, nn.Unflatten(1, output)) if len(output) > 1 else linear
        if start is not None:
            start_from(layer, start)
        return layer
