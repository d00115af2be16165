"""Likelihoods of categories, coded as whole numbers 0, 1, ..., with or without an order."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from ..data import check_range
from ..registry import registered
from .base import Features, Likelihood, column_means, column_shares, inverse_of
from .special import as_shape, soft_limit

_LOG_SPACING_LIMIT = 10.0  # cut points are e^-10 to e^10 apart; beyond, they move slowly


class Codes(Features):
    """Categories with these log probabilities, `(*features, categories)`; data are codes."""

    trailing = 1
    values = constraints.nonnegative_integer

    @property
    def mean(self) -> Tensor:
        """Mean of the codes; meaningful if they are ordered."""
        probabilities = self.parameters[0].exp()
        return probabilities @ torch.arange(probabilities.shape[-1]).to(probabilities)

    @property
    def mode(self) -> Tensor:
        """The most probable code, as a float."""
        log_probs = self.parameters[0]
        return log_probs.argmax(dim=-1).to(log_probs)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability; values between two codes are rounded to the nearer one."""
        log_probs = self.parameters[0]
        code = value.round().long().clamp(0, log_probs.shape[-1] - 1)
        shape = torch.broadcast_shapes(code.shape, log_probs.shape[:-1])
        table = log_probs.expand(*shape, log_probs.shape[-1])
        found = table.gather(-1, code.expand(shape)[..., None])[..., 0]
        return found.masked_fill((value - code).abs() > 0.5, -torch.inf)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008 (torch's signature)
        """Draws, as floats."""
        (log_probs,) = self.parameters
        codes = torch.distributions.Categorical(logits=log_probs, validate_args=False)
        return codes.sample(sample_shape).to(log_probs)


def _check_codes(y: Tensor, count: int, likelihood: str, names: tuple[str, ...] | None) -> None:
    check_range(
        y, low=0, high=count - 1, whole=True, likelihood=likelihood, names=names,
        remedy=f"code the {count} categories as 0, 1, ..., {count - 1}, an unseen one as nan",
    )  # fmt: skip


def _check_count(count: int, name: str) -> int:
    if count < 2:
        raise ValueError(
            f"{name} must be at least 2, got {count}: leave out a column that has one value only"
        )
    return count


@registered()
class Categorical(Likelihood):
    r"""Categories without an order, coded 0, 1, ..., C - 1 as floats.

    .. math:: p(y_d = c \mid z) = \frac{e^{\eta_{dc}(z)}}{\sum_{c'} e^{\eta_{dc'}(z)}}

    The decoder gives C numbers per feature, stacked along the first axis of the datum: with 5
    features, the first 5 numbers are for category 0. Codes have no mean: :meth:`mean` is the most
    probable code, as a reconstruction, and :meth:`probabilities` gives the whole distribution.

    Arguments:
        num_categories: C, for all features; use :class:`Mixed` if columns differ.

    Raises:
        ValueError: If there are fewer than two categories; when called, if the output does not
            split evenly.

    Example:
        >>> Categorical(4)(torch.zeros(1, 4)).log_prob(torch.tensor([[3.0]])).exp()
        tensor([0.2500])
    """

    def __init__(self, num_categories: int) -> None:
        super().__init__()
        self.num_categories = _check_count(num_categories, "num_categories")

    @property
    def outputs(self) -> int:  # type: ignore[override]
        """Numbers per feature that the decoder must give: one per category."""
        return self.num_categories

    def distribution(self, output: Tensor, *given: Tensor) -> Codes:
        """Categories of the features."""
        if output.shape[1] % self.num_categories:
            raise ValueError(
                f"{self.num_categories} categories need that many numbers per feature, along the "
                f"axis after the batch; the decoder gave {tuple(output.shape)}: build it with "
                f"outputs={self.num_categories}"
            )
        scores = output.unflatten(1, (self.num_categories, -1)).movedim(1, -1)
        return Codes(scores.log_softmax(dim=-1))

    def mean(
        self, output: Float[Tensor, "batch *output"], *given: Tensor
    ) -> Float[Tensor, "batch *datum"]:
        """The most probable code."""
        return self.distribution(output).mode

    def probabilities(
        self, output: Float[Tensor, "batch *output"]
    ) -> Float[Tensor, "batch *datum categories"]:
        """Probability of every category, along a last axis."""
        return self.distribution(output).parameters[0].exp()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are not codes."""
        _check_codes(y, self.num_categories, f"Categorical({self.num_categories})", names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """Logs of the shares of the categories."""
        return torch.cat([column_shares(y == code, y).log() for code in range(self.outputs)])


@registered()
class Ordinal(Likelihood):
    r"""Levels with an order, coded 0, 1, ..., C - 1 as floats: cumulative logits.

    .. math:: p(y_d \ge k \mid z) = \mathrm{logit}^{-1}(\eta_d(z) - c_{k}), \qquad
        c_1 < c_2 < \dots < c_{C-1}

    One number per feature shifts the log odds of all levels (proportional odds); the cut points are
    parameters of the model. :meth:`mean` is the mean of the codes, a number between two levels.

    Arguments:
        num_levels: Number of levels, C.
        shape: `()` for the same cut points for all features, or the shape of a datum for separate
            ones.

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
        """The cut points, in order along the last axis."""
        start = self.first[..., None]
        return torch.cat([start, start + self._spacings.cumsum(dim=-1)], dim=-1)

    def distribution(self, output: Tensor, *given: Tensor) -> Codes:
        r"""Levels of the features.

        :math:`s(a) - s(b) = s(a) s(-b) (1 - e^{-(a - b)})` for the logistic function s. The
        difference may lose all digits; the product does not, and its last factor does not depend on
        z.
        """
        above = output[..., None] - self.cuts  # logits of y >= 1, ..., y >= C - 1
        log_above, log_below = logsigmoid(above), logsigmoid(-above)
        between = (-(-self._spacings).expm1()).log()
        inner = log_above[..., :-1] + log_below[..., 1:] + between
        return Codes(torch.cat([log_below[..., :1], inner, log_above[..., -1:]], dim=-1))

    def mode(self, output: Float[Tensor, "batch *output"]) -> Float[Tensor, "batch *datum"]:
        """The most probable code."""
        return self.distribution(output).mode

    def probabilities(
        self, output: Float[Tensor, "batch *output"]
    ) -> Float[Tensor, "batch *datum levels"]:
        """Probability of every level, along a last axis."""
        return self.distribution(output).parameters[0].exp()

    def check(self, y: Tensor, names: tuple[str, ...] | None = None) -> None:
        """Refuses values that are not codes."""
        _check_codes(y, self.num_levels, f"Ordinal({self.num_levels})", names)

    def start(self, y: Float[Tensor, "batch *datum"], *given: Tensor) -> Float[Tensor, "*output"]:
        """The output at which the mean code is that of the data, for the current cut points."""
        with torch.no_grad():
            means = column_means(y)
            return inverse_of(lambda output: self.distribution(output).mean, means, -20.0, 20.0)
