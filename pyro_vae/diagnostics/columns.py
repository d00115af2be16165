r"""Which column of the data does the model get wrong? Leave-one-out checks by column.

Every entry is compared with the model's prediction of it from the other entries of its datum,

.. math:: p(y_d \mid y_{-d}) = \int p(y_d \mid z) \, p(z \mid y_{-d}) \, dz .

The same draws :math:`z_k \sim q(z \mid y)` are used for all columns. If the importance weights are
divided by an entry's density, the weighted draws represent the posterior that has not seen this
entry:

.. math:: w_k^{(-d)} = \frac{p(y, z_k)}{q(z_k \mid y) \, p(y_d \mid z_k)}, \qquad
    u_d = \sum_k \bar w_k^{(-d)} \big( [\tilde y_{kd} < y_d] + v [\tilde y_{kd} = y_d] \big), \quad
    \tilde y_{kd} \sim p(y_d \mid z_k),

with v uniform on (0, 1). If the model is right, u is uniform up to the error of the weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from .. import stats
from .._types import Batch, Data, ProgramLike
from ..evidence import Block, ImportanceSampling, Inference
from ..evidence.weights import conditioned, normalized
from ..formatting import count_of
from ..programs import PartlyObserved
from ..programs.hooks import hooks_of
from ..programs.pieces import take_rows
from ..programs.simulation import feature_distribution
from ..programs.traces import repeat_rows
from ..randomness import forked, generator, stream
from ..results import join
from .calibration import Calibration, require_discrete_draws

_RANKS = 99  # the largest rank: ranks are percentiles
_FEW = 50.0  # effective draws; the errors of ranks are then up to 7 percentage points


@dataclass(frozen=True, repr=False)
class LeaveOneOut(Calibration):
    """Rank of every entry among predictions of this entry from the other entries of its datum.

    Arguments:
        ranks: Percentiles from 0 to 99, `(data, columns)`; uniform if the model is right.
        names: Names of the columns.
        num_samples: The largest rank, 99.
        data: The data.
        given: Text that names the global sites on which the predictions are conditional; empty if
            there are none.
        draws: How messages refer to the draws, for example as "the guide's draws".
        ess: Effective number of draws for the prediction of each entry, `(data, columns)`.
    """

    ess: Float64[Tensor, "data columns"] = field(kw_only=True)

    def summary(self, false_alarm: float = 0.01) -> str:
        """Returns one line per column, the verdict, and a caution if few draws are effective."""
        few = (self.ess < _FEW).double().mean(dim=0)
        worst = int(few.argmax())
        ranks = super().summary(false_alarm)
        if float(few[worst]) == 0:
            return ranks
        return (
            f"{ranks}; in the worst column, '{self.names[worst]}', fewer than {_FEW:.0f} draws are "
            f"effective for {float(few[worst]):.0%} of the entries: pass a larger `num_samples`, "
            "or train the guide for longer"
        )


def leave_one_out(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    num_samples: int = 1000,
    *,
    names: Sequence[str] | None = None,
    given: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> LeaveOneOut:
    r"""Checks column by column whether data lie where the model predicts them (LOO-PIT).

    .. math:: u_d = P(\tilde y_d \le y_d \mid y_{-d})

    This is uniform for data drawn from the model. For the model's training data the check is
    optimistic, because the model was fitted to them. A missing entry gets a random rank: the test
    loses power, but remains valid.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data and one observed site, whose
            features are independent given z.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. Importance weights
            correct for the errors of the guide.
        data: The batch tensor, or a tuple of tensors.
        num_samples: Draws of the guide per datum; all columns use the same draws.
        names: Names of the columns; their positions by default.
        given: Values of the latent sites that all data share, by name.
        seed: Seed of all random numbers; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Ranks, exact p-values of each column with Holm's adjustment, and a verdict: which columns
        the model predicts too high, too low, too narrowly or too widely.

    Raises:
        ValueError: If features are not independent given z, the number of names is wrong, a
            discrete site is summed out, or there are fewer than two data.

    References:
        | Practical Bayesian Model Evaluation Using Leave-One-Out Cross-Validation and WAIC
          (Vehtari, Gelman & Gabry, 2017)
        | https://arxiv.org/abs/1507.04544
        | Visualization in Bayesian Workflow (Gabry et al., 2019), for LOO-PIT
        | https://arxiv.org/abs/1709.01449

    Example:
        >>> import pyro_vae as pv
        >>> net = torch.nn.Linear(1, 3)
        >>> _ = net.weight.data.fill_(0.3)
        >>> model = pv.models.VAE(net, pv.likelihoods.Gaussian(), latent_dim=1)
        >>> guide = pv.Guide(model, pv.GlobalParameters())
        >>> y = model.sample(60, seed=1) + torch.tensor([0.0, 0.0, 3.0])
        >>> check = leave_one_out(model, guide, y, 200, names=["a", "b", "c"])
        >>> "the model's predictions of c are too narrow and too low" in check.verdict(1e-6)
        True
    """
    with conditioned(model, guide, data, seed, given) as inference:
        batch = inference.batch
        columns = _column_names(batch, names)
        if hooks_of(inference.program.model).decode is None:
            remedy = "use pv.diagnostics.predictive_check"
            require_discrete_draws(inference.program, "a column cannot be predicted", remedy)
        estimator = ImportanceSampling(num_samples)
        own = stream(seed, "leave_one_out")
        sampling = estimator.sampling(inference, seed=own, progress=progress)
        with forked(seed, "leave_one_out.predictions"):
            parts = [_shares_below(inference, block) for block in sampling.blocks()]
        below, equal, ess = (part.cpu() for part in join(parts))
    chance = generator(stream(seed, "leave_one_out.ties"))
    uniform = torch.rand(below.shape, generator=chance, dtype=torch.float64, device="cpu")
    missing = batch[0].reshape(len(batch[0]), -1).isnan().cpu()
    shares = (below + uniform * equal).where(~missing, uniform)
    ranks = (shares * (_RANKS + 1)).long().clamp(max=_RANKS)
    return LeaveOneOut(
        ranks, columns, _RANKS, batch, inference.program.conditions, "the model's predictions",
        ess=ess.where(~missing, torch.inf),
    )  # fmt: skip


def _column_names(batch: Batch, names: Sequence[str] | None) -> tuple[str, ...]:
    """Checks the data and the names; the default names are "column 0", "column 1", ..."""
    number, columns = len(batch[0]), batch[0][0].numel()
    if number < 2:
        raise ValueError(f"`data` must have at least 2 rows; got {number}")
    known = tuple(f"column {place}" for place in range(columns)) if names is None else tuple(names)
    if len(known) != columns:
        raise ValueError(
            f"`names` must be {count_of(columns, 'name')}, one per column; got {len(known)}"
        )
    return known


def _shares_below(inference: Inference, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    """Predicts each entry from the other entries of its datum, using weighted draws.

    Returns:
        The weight of the predictions below the entry, the weight of the predictions equal to the
        entry, and the ESS, `(rows, columns)` each.
    """
    rows = take_rows(inference.batch, block.rows)
    shape = block.z.shape[:2]
    predicted = feature_distribution(inference.program, block.z, rows)
    y = repeat_rows(rows, len(block.z))[0]
    # A missing entry has no density; `leave_one_out` gives it a random rank.
    log_p = predicted.log_prob(y.nan_to_num(nan=0.0)).double().reshape(*shape, -1)
    log_weights = block.weights.log_weights[..., None] - log_p.where(log_p.isfinite(), 0.0)
    drawn = predicted.sample()
    # If the probability of being observed depends on an entry's value, it weighs the predictions.
    seen = predicted.log_observed(drawn) if isinstance(predicted, PartlyObserved) else None
    if seen is not None:
        log_weights = log_weights + seen.double().reshape(*shape, -1)
    shares = normalized(log_weights)
    drawn, y = (part.reshape(*shape, -1) for part in (drawn, y))
    below, equal = ((shares * mask).sum(dim=0) for mask in (drawn < y, drawn == y))
    return below, equal, stats.effective_sample_size(log_weights)
