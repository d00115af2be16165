r"""Similarity of two rows: how much more probable the two are if they have the same latents.

.. math:: s_{nm} = \log \frac{p(y_n, y_m)}{p(y_n)\, p(y_m)} = \log \frac{p(y_m \mid y_n)}{p(y_m)},
    \qquad p(y_n, y_m) = \int p(z)\, p(y_n \mid z)\, p(y_m \mid z)\, dz

:math:`s_{nm}` is the log Bayes factor of one z for both rows against a separate z for each row. The
method of Bayesian sets gives this score for a set of one row. The similarity is symmetric, does not
depend on the units of the data, allows missing entries, and is positive if the rows suggest the
same z. The more informative the rows, the larger the absolute value of the similarity. Distances
between embeddings ignore how informative rows are.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence import PARETO_SMOOTHED, ImportanceSampling, LogMarginal, Weights
from ..evidence.importance import log_marginal_of
from ..formatting import count_of, plus_minus
from ..programs import Program
from ..programs.pieces import in_pieces
from ..results import Result, join
from .weighted import estimator_for, prepared_with_holes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS_AT_ONCE = 65_536  # rows passed to the program at a time; only memory use depends on this


@dataclass(frozen=True, repr=False)
class Similarity(Result):
    """Similarity of every row with every other row, under the model.

    Arguments:
        estimate: Value and error of each pair, `(rows, others)`, in nats.
        reliable: Whether p(y_n), p(y_m) and p(y_n, y_m) of a pair of rows n and m can all be
            trusted, `(rows, others)`.
        same: Whether the rows were compared with one another, and not with separate `others`.
    """

    estimate: Estimate
    reliable: Bool[Tensor, "rows others"]
    same: bool = False

    _is_drawn_fast = False

    def nearest(self, row: int, number: int = 10) -> list[tuple[int, float, float]]:
        """Returns position, value and error of the rows most similar to a row, the nearest first.

        If the rows were compared with one another, a row is not listed as similar to itself.
        """
        value, error = (part[row].cpu() for part in self.estimate)
        order = [
            place
            for place in value.nan_to_num(nan=-math.inf).argsort(descending=True).tolist()
            if not (self.same and place == row)
        ][:number]
        return [(place, float(value[place]), float(error[place])) for place in order]

    def plot(self) -> "Axes":
        """Plots the matrix of all pairs as a heat map; needs matplotlib."""
        from ..plots import plot_similarity

        return plot_similarity(self.estimate.value)

    def summary(self, number: int = 10) -> str:
        """Names the row most similar to each of the first `number` rows.

        Also counts the pairs that cannot be trusted.
        """
        rows, others = self.reliable.shape
        lines = [
            f"row {row}: most similar to row {place} ({plus_minus(value, error)} nats"
            f"{'' if self.reliable[row, place] else ', unreliable'})"
            for row in range(min(rows, number))
            for place, value, error in self.nearest(row, 1)
        ]
        bad = int((~self.reliable).sum())
        why = ": too few of the draws for a row explain that row, or explain both rows"
        verdict = (
            f"similarity of {count_of(rows, 'row')} with {count_of(others, 'row')}; {bad} of "
            f"{count_of(rows * others, 'pair')} cannot be trusted{why if bad else ''}"
        )
        return "\n".join([*lines, verdict])


def similarity(
    model: ProgramLike,
    guide: ProgramLike | None,
    data: Data,
    others: Data | None = None,
    estimator: ImportanceSampling | None = None,
    *,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Similarity:
    r"""Estimates the similarity of rows (a log Bayes factor) by importance sampling.

    The similarity is the log of :math:`p(y_n, y_m) / (p(y_n)\, p(y_m))`. The first density is
    estimated by

    .. math:: \hat p(y_n, y_m) = \frac{1}{K} \sum_k \frac{p(z_k)\, p(y_n \mid z_k)\,
        p(y_m \mid z_k)}{q(z_k \mid y_n)}, \qquad z_k \sim q(z \mid y_n)

    The cost is draws x rows x others evaluations of p(y | z). If two rows are very different, the
    draws for one row say little about the other row. The value is then very negative and not
    reliable.

    Arguments:
        model: A Pyro program with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand; `None` fits a
            Gaussian to the posterior of every row.
        data: The batch tensor, or a tuple of them.
        others: Rows to compare with; by default those of `data`.
        estimator: Importance sampling with 2,000 draws by default. Its `average` is not used:
            weights are Pareto-smoothed.
        given: Values of the global latent sites, by name.
        seed: Seed of all draws.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Value and error of every pair, `(rows, others)`, in nats. The errors of :math:`p(y_n)`,
        :math:`p(y_m)` and :math:`p(y_n, y_m)` are combined as if they were independent. As the
        densities share draws, the true error is smaller.

    Raises:
        ValueError: If data, model and guide do not fit together, or there are too few draws.

    References:
        | Bayesian Sets (Ghahramani & Heller, 2005)
        | https://papers.nips.cc/paper/2005/hash/bd7db7397f7d83052f829816ecc7f004-Abstract.html
        | CrossCat: A Fully Bayesian Nonparametric Method for Analyzing Heterogeneous, High
          Dimensional Data (Mansinghka et al., 2016), for similarity of rows under a model
        | https://arxiv.org/abs/1512.01272

    Example:
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 2), likelihoods.Gaussian(0.3), latent_dim=1)
        >>> y = model.sample(3, seed=1)
        >>> similarity(model, None, y, estimator=ImportanceSampling(50)).reliable.shape
        torch.Size([3, 3])
    """
    how = replace(estimator_for(guide, estimator), average=PARETO_SMOOTHED)
    options: dict[str, Any] = {"seed": seed, "progress": progress}
    of_others = other_rows = None
    if others is not None:
        with prepared_with_holes(model, guide, others, seed, given) as found:
            of_others, other_rows = how(found, **options), found.batch
    parts: list[LogMarginal] = []
    joint: list[LogMarginal] = []
    with prepared_with_holes(model, guide, data, seed, given) as inference:
        program, _, batch = inference
        for (_, z, weights), evidence in how.sampling(inference, **options).judged_blocks():
            parts.append(evidence)
            for row in range(z.shape[1]):
                one = Weights(*(part[:, [row]] for part in weights))
                joint.append(_joint(program, z[:, [row]], one, other_rows or batch))
    of_rows = join(parts)
    return _similarity(of_rows, of_others or of_rows, joint, same=others is None)


def _joint(
    program: Program, z: Float[Tensor, "draws one latents"], weights: Weights, others: Batch
) -> LogMarginal:
    """Estimates the joint log density of one row and each of `others`, from draws for the row."""
    scores = [
        program.log_densities(z.expand(-1, len(some[0]), -1), *some).likelihood
        for some in in_pieces(_ROWS_AT_ONCE // len(z), *others)
    ]
    both = weights.log_likelihood + torch.cat(scores, dim=1)
    prior, proposal = (part.expand_as(both) for part in (weights.log_prior, weights.log_guide))
    return log_marginal_of(Weights(prior, both, proposal), PARETO_SMOOTHED)


def _similarity(
    rows: LogMarginal, others: LogMarginal, joint: list[LogMarginal], *, same: bool
) -> Similarity:
    """Computes similarities; `joint` has one item for each row n: log p(y_n, y_m) for all m."""
    value = torch.stack([pair.value for pair in joint]) - rows.value[:, None] - others.value
    squares = torch.stack([pair.error.square() for pair in joint])
    error = (squares + rows.error.square()[:, None] + others.error.square()).sqrt()
    reliable = torch.stack([pair.reliable for pair in joint])
    trusted = reliable & rows.reliable[:, None] & others.reliable
    return Similarity(Estimate(value, error), trusted, same)
