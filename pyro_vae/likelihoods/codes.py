"""Likelihoods of ordered or unordered categories, which are coded as 0, 1, 2, and so on."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from .._types import Size
from ..data.checks import check_range
from ..formatting import count_of
from ..registry import registered
from .base import Features, Likelihood, column_means, column_shares, inverse_of
from .special import as_shape, require_outputs, soft_limit

_LOG_SPACING_LIMIT = 10.0  # of log distances of cut points; beyond it, `soft_limit` slows changes


class Codes(Features):
    """Categorical distributions of codes, with log probabilities `(*features, categories)`."""

    trailing = 1
    values = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        """Returns the mean of the codes, which is meaningful only for ordered categories."""
        probabilities = self.parameters[0].exp()
        codes = torch.arange(probabilities.shape[-1], device=probabilities.device)
        return probabilities @ codes.to(probabilities)

    @property
    def mode(self) -> Tensor:
        """Returns the most probable code, as a float."""
        log_probs = self.parameters[0]
        return log_probs.argmax(dim=-1).to(log_probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log probability of the code nearest to each value.

        The result is -inf for a value that is more than 1/2 away from every code.
        """
        log_probs = self.parameters[0]
        code = value.round().long().clamp(0, log_probs.shape[-1] - 1)
        shape = torch.broadcast_shapes(code.shape, log_probs.shape[:-1])
        table = log_probs.expand(*shape, log_probs.shape[-1])
        found = table.gather(-1, code.expand(shape)[..., None])[..., 0]
        return found.masked_fill((value - code).abs() > 0.5, -torch.inf)

    def sample(self, sample_shape: Size = ()) -> Tensor:
        """Returns draws of codes, as floats."""
        (log_probs,) = self.parameters
        codes = torch.distributions.Categorical(logits=log_probs, validate_args=False)
        return codes.sample(sample_shape).to(log_probs)


def _check_codes(y: Tensor, count: int, likelihood: str, names: tuple[str, ...] | None) -> None:
    check_range(
        y, low=0, high=count - 1, whole=True, likelihood=likelihood, names=names,
        remedy=(
            f"code the {count_of(count, 'category')} as 0, 1, ..., {count - 1}, and an unknown "
            "category as nan"
        ),
    )  # fmt: skip


def _check_count(count: int, name: str) -> int:
    if count < 2:
        raise ValueError(
            f"`{name}` must be at least 2; got {count}: leave out columns that have only one value"
        )
    return count


@registered()
class Categorical(Likelihood):
    r"""Categories without an order, coded 0, 1, ..., C - 1 as floats.

    .. math:: p(y_d = c \mid z) = \frac{e^{\eta_{dc}(z)}}{\sum_{c'} e^{\eta_{dc'}(z)}}

    The decoder gives C numbers per feature. They are stacked along the first axis of the datum:
    with 5 features, the first 5 numbers are for category 0. Codes without an order have no mean, so
    :meth:`mean` returns the most probable code as a reconstruction. :meth:`probabilities` gives the
    whole distribution.

    Arguments:
        num_categories: The number of categories, C, of every feature. If columns have different
            numbers of categories, use :class:`Mixed`.

    Raises:
        ValueError: If there are fewer than two categories; when called, if the size of the output
            is not a multiple of C.

    Example:
        >>> Categorical(4)(torch.zeros(1, 4)).log_prob(torch.tensor([[3.0]])).exp()
        tensor([0.2500])
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_categories = _check_count(num_categories, "num_categories")

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """The number of decoder outputs per feature: one for each category."""
        return self.num_categories

    def distribution(self, output: Tensor, *given: Tensor) -> Codes:
        """Returns a categorical distribution for each feature."""
        require_outputs(output, self.num_categories, f"{count_of(self.num_categories, 'category')}")
        scores = output.unflatten(1, (self.num_categories, -1)).movedim(1, -1)
        return Codes(scores.log_softmax(dim=-1))

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """Returns the most probable code."""
        return self.distribution(output).mode

    def probabilities(
        self, output: Float[Tensor, "batch *output"]
    ) -> Float[Tensor, "batch *datum categories"]:
        """Returns the probability of every category, along a new last axis."""
        return self.distribution(output).parameters[0].exp()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are not codes."""
        _check_codes(y, self.num_categories, f"Categorical({self.num_categories})", names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the log of each category's share of the observed entries, for every column."""
        return torch.cat([column_shares(y == code, y).log() for code in range(self.outputs)])


@registered()
class Ordinal(Likelihood):
    r"""Ordered levels, coded 0, 1, ..., C - 1 as floats, with cumulative logits.

    .. math:: p(y_d \ge k \mid z) = \mathrm{logit}^{-1}(\eta_d(z) - c_{k}), \qquad
        c_1 < c_2 < \dots < c_{C-1}

    The decoder gives one number per feature, which shifts the log odds of :math:`y \ge k` by the
    same amount for all levels k (proportional odds). The cut points :math:`c_k` are parameters of
    the model. :meth:`mean` returns the mean of the codes, which in general lies between two levels.

    Arguments:
        num_levels: Number of levels, C.
        shape: `()` if all features share the cut points, or the shape of a datum for separate cut
            points.

    Raises:
        ValueError: If there are fewer than two levels.

    References:
        | Regression Models for Ordinal Data (McCullagh, 1980)
        | https://doi.org/10.1111/j.2517-6161.1980.tb01109.x

    Example:
        >>> Ordinal(4).probabilities(torch.zeros(1, 1))
        tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]], grad_fn=<ExpBackward0>)
    """

    def __init__(self, num_levels: int, shape: tuple[int, ...] | int = ()) -> None:
        super().__init__()
        self.num_levels = _check_count(num_levels, "num_levels")
        self.shape = as_shape(shape)
        cuts = (torch.arange(1, num_levels) / num_levels).logit()
        self.first = nn.Parameter(cuts[0].expand(self.shape).clone())
        spacings = cuts.diff().log()
        self.log_spacings = nn.Parameter(spacings.expand(*self.shape, num_levels - 2).clone())

    @property
    def _spacings(self) -> Tensor:
        return soft_limit(self.log_spacings, _LOG_SPACING_LIMIT).exp()

    @property
    def cuts(self) -> Tensor:
        """Returns the cut points, in increasing order along the last axis."""
        start = self.first[..., None]
        return torch.cat([start, start + self._spacings.cumsum(dim=-1)], dim=-1)

    def distribution(self, output: Tensor, *given: Tensor) -> Codes:
        r"""Returns the distribution of the levels of each feature.

        The probability of a level is a difference :math:`s(a) - s(b)` of two values of the logistic
        function s. In floating point this difference can lose all its digits. It is therefore
        computed as a product, :math:`s(a) s(-b) (1 - e^{-(a - b)})`, which is mathematically the
        same. The last factor does not depend on z.
        """
        above = output[..., None] - self.cuts  # logits of y >= 1, ..., y >= C - 1
        log_above, log_below = logsigmoid(above), logsigmoid(-above)
        between = (-(-self._spacings).expm1()).log()
        inner = log_above[..., :-1] + log_below[..., 1:] + between
        return Codes(torch.cat([log_below[..., :1], inner, log_above[..., -1:]], dim=-1))

    def mode(self, output: Float[Tensor, "batch *output"]) -> Float[Tensor, "batch *datum"]:
        """Returns the most probable code."""
        return self.distribution(output).mode

    def probabilities(
        self, output: Float[Tensor, "batch *output"]
    ) -> Float[Tensor, "batch *datum levels"]:
        """Returns the probability of every level, along a new last axis."""
        return self.distribution(output).parameters[0].exp()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are not codes."""
        _check_codes(y, self.num_levels, f"Ordinal({self.num_levels})", names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Returns the decoder output at which p(y | z) has each column's observed mean.

        The cut points keep their present values.
        """
        with torch.no_grad():
            means = column_means(y)
            return inverse_of(lambda output: self.distribution(output).mean, means, -20.0, 20.0)
