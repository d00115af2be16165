r"""The rate-distortion trade-off: models and guides trained for a sequence of KL weights.

With the rate :math:`R = \mathbb{E} \, \mathrm{KL}(q(z \mid y) \,\|\, p(z))` and the distortion
:math:`D = -\mathbb{E}_q \log p(y \mid z)`, the ELBO is :math:`-D - R`. Models of equal
ELBO can have very different rates: in one the decoder ignores z, in another z identifies the datum.
Training on

.. math:: \min D + \beta R

for several :math:`\beta` shows the whole range of rates. At the optimum :math:`D` is a convex,
falling function of :math:`R` with the slope :math:`dD / dR = -\beta`: a larger beta gives a lower
rate and a higher distortion, and the ELBO is greatest at :math:`\beta = 1`.

For any model and guide, with I the information in z about the identity of the datum, and H the
entropy of the data,

.. math:: H - D \le I_q(n; z) \le R, \qquad 0 \le I_q(n; z) \le \log N .

The bound on the right holds because the difference is a divergence,
:math:`R - I = \mathrm{KL}(q(z) \,\|\, p(z)) \ge 0`. The bound on the left holds for two
reasons. First, no decoder has a smaller distortion than the conditional distribution of y given z
under q, so :math:`D \ge H(y \mid z) = H(y) - I_q(y; z)`. Second, z has no more information about y
than about n.

All terms refer to one distribution, the empirical distribution of the evaluated data, so H is the
entropy of *this* distribution: :math:`-\sum_c \frac{N_c}{N} \log \frac{N_c}{N}` over distinct rows
that occur :math:`N_c` times, which is :math:`\log N` if no two rows are equal. The entropy of the
distribution that the data were sampled from is larger and unknown. If the likelihood is a density
and not a probability, the empirical distribution has no comparable entropy; then only the bound on
the right is checked.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from .._types import Batch, Data, Estimate, ProgramLike
from ..evidence.weights import check_data, check_more_data, conditioned
from ..guides.entry import is_tied_to_rows
from ..objectives import BetaELBO
from ..programs import Program, as_batch, minibatch
from ..programs.copies import copied
from ..programs.hooks import name_of
from ..programs.missing import has_missing
from ..programs.modes import device_of
from ..programs.pieces import take_rows
from ..progress import progress_bar
from ..randomness import row_digests
from ..results import Result, combined
from ..training import Fit, adam, fit
from ..training.optimizers import OptimizerFactory
from .aggregate import Surgery, is_negligible, surgery

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BETAS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_ERRORS = 5  # standard errors: by chance, a tight bound seems violated with a probability of 3e-7
_CLEAR = 2  # standard errors; these are overstated, since errors of correlated terms are added
_ROUNDING = 1e-3  # nats; in float32, log densities of a thousand nats are off by 1e-4


@dataclass(frozen=True, eq=False)
class TradeOff:
    """The result for one beta: trained model and guide, and the parts of their ELBO at KL weight 1.

    Arguments:
        beta: The weight of the rate in training.
        train: Parts of the ELBO of the training data.
        held_out: Parts of the ELBO of the held-out data; `None` if there are no held-out data.
        model: The trained copy of the model.
        guide: The trained copy of the guide.
        fit: The result of training.
    """

    beta: float
    train: Surgery
    held_out: Surgery | None
    model: Any
    guide: Any
    fit: Fit


class Curve(NamedTuple):
    """Rate, distortion, ELBO and information for several weights beta of the rate.

    Every field has the shape `(betas,)` and is in ascending order of beta. All fields except `beta`
    are in nats per datum.
    """

    beta: Tensor
    rate: Estimate
    distortion: Estimate
    elbo: Estimate
    information: Estimate


class Violation(NamedTuple):
    """A bound on rate, distortion or information that is violated by more than the errors allow.

    Arguments:
        beta: The beta at which the bound is violated.
        data: The data set for which the bound is violated.
        bound: The violated bound, in words.
        excess: By how much the bound is violated, in nats per datum.
    """

    beta: float
    data: str
    bound: str
    excess: Estimate

    def __str__(self) -> str:
        """States the violation in one line."""
        return (
            f"for the {self.data} and beta {self.beta:g}, the bound {self.bound} is violated by "
            f"{self.excess:.3f} nats"
        )


class Beaten(NamedTuple):
    """A beta for which a model that was trained with another beta has a lower D + beta R.

    Arguments:
        beta: The beta of the objective D + beta R, which is computed on the training data.
        by: The beta with which the better model and guide were trained.
        excess: How much lower the objective of the better model is, in nats per datum.
    """

    beta: float
    by: float
    excess: Estimate

    def __str__(self) -> str:
        """States in one line which beta does better, and by how much."""
        return (
            f"at beta {self.beta:g}, distortion + {self.beta:g} * rate is {self.excess:.3f} nats "
            f"lower for the model trained with beta {self.by:g}"
        )


@dataclass(frozen=True, eq=False, repr=False)
class RateDistortion(Result):
    """Results of training with several weights beta of the rate, in ascending order of beta.

    Arguments:
        points: One result for each beta that was reached before training ended.
        entropy: Entropy of the empirical distribution of the training data, in nats per datum.
            `None` if it cannot be compared with the distortion: if the likelihood is a density, if
            the model observes anything else than the whole data tensor, or if entries are missing.
        held_out_entropy: Entropy of the held-out data; `None` for the same reasons, or if there are
            no held-out data.
    """

    points: tuple[TradeOff, ...]
    entropy: float | None
    held_out_entropy: float | None = None

    def plot(self) -> "Axes":
        """Plots distortion against rate, for training and held-out data; needs matplotlib."""
        from ..plots import plot_rate_distortion

        curves = {"training data": self.train, "held out": self.held_out}
        known = {name: curve for name, curve in curves.items() if curve is not None}
        pairs = {name: (curve.rate, curve.distortion) for name, curve in known.items()}
        return plot_rate_distortion(self.train.beta, pairs)

    @property
    def models(self) -> dict[float, Any]:
        """The model that was trained for each beta."""
        return {point.beta: point.model for point in self.points}

    @property
    def guides(self) -> dict[float, Any]:
        """The guide that was trained for each beta."""
        return {point.beta: point.guide for point in self.points}

    @property
    def train(self) -> Curve:
        """The parts of the ELBO of the training data, by beta."""
        return _curve([(point.beta, point.train) for point in self.points])

    @property
    def held_out(self) -> Curve | None:
        """The parts of the ELBO of the held-out data, by beta.

        It is `None` if there are no held-out data.
        """
        parts = [(point.beta, point.held_out) for point in self.points]
        known = [(beta, part) for beta, part in parts if part is not None]
        return _curve(known) if known else None

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Violations of bounds that hold for any model and guide.

        Each violation shows that a number is wrong. A bound counts as violated if the excess is
        above five standard errors plus 0.001 nats for rounding.
        """
        found: list[Violation] = []
        for point in self.points:
            found += _broken(point.beta, "training data", point.train, self.entropy)
            if point.held_out is not None:
                found += _broken(point.beta, "held-out data", point.held_out, self.held_out_entropy)
        return tuple(found)

    @property
    def beaten(self) -> tuple[Beaten, ...]:
        """The betas for which a model that was trained with another beta has a lower D + beta R.

        For each such beta, the best model is given. Only differences beyond their errors count.
        If training were perfect, there would be no such beta: the rate would fall and the
        distortion would rise with beta. To improve training, use more epochs, or change the small
        betas of the list: training goes from the smallest beta to the largest, and each result
        builds on the previous result.
        """
        pairs = [_beaten(one, other) for one, other in permutations(self.points, 2)]
        found = sorted((pair for pair in pairs if pair), key=lambda pair: float(pair.excess.value))
        worst = {pair.beta: pair for pair in found}  # of each beta, the pair with the most excess
        return tuple(worst[point.beta] for point in self.points if point.beta in worst)

    @property
    def unconverged(self) -> tuple[float, ...]:
        """Betas for which the loss does not show that training converged.

        For these betas, longer training might lower the distortion. Train once more with more
        epochs, and see whether the results change. See :attr:`pyro_vae.training.Fit.converged`.
        """
        return tuple(point.beta for point in self.points if point.fit.converged is not True)

    @property
    def verdict(self) -> str:
        """Says at which beta the ELBO is greatest, and where training may not have converged."""
        parts = {point.beta: point.held_out or point.train for point in self.points}
        best = max(parts, key=lambda beta: float(parts[beta].elbo.value))
        silent = [beta for beta, part in parts.items() if is_negligible(part.information)]
        text = f"the ELBO is greatest at beta {best:g}, {parts[best].elbo:.3f} nats"
        if silent:
            text += f"; from beta {min(silent):g} on, z carries no information about the data"
        if self.unconverged:
            betas = ", ".join(f"{beta:g}" for beta in self.unconverged)
            text += (
                f"; training may not have converged at beta {betas}, so the true curve may lie "
                "below this one"
            )
        if self.points[-1].fit.stopped == "interrupted":
            text += f"; training was interrupted at beta {self.points[-1].beta:g}"
        return text

    def summary(self) -> str:
        """Returns a table of the parts of the ELBO by beta, the bounds, and the verdict."""
        lines = ["training data", *_table(self.train)]
        if self.held_out is not None:
            lines += ["held-out data", *_table(self.held_out)]
        broken = [f"BROKEN: {violation}" for violation in self.violations]
        lines += broken or [self._bounds_that_hold()]
        lines += [f"not converged: {beaten}" for beaten in self.beaten]
        return "\n".join([*lines, self.verdict])

    def _bounds_that_hold(self) -> str:
        if self.entropy is None:
            return "information <= rate everywhere; the entropy of the data is not known"
        known = [f"{self.entropy:.3f}"]
        if self.held_out_entropy is not None:
            known.append(f"{self.held_out_entropy:.3f} held out")
        return (
            "H - distortion <= information <= rate everywhere, where H = "
            f"{', '.join(known)} is the entropy of these rows, not of the population"
        )


def _curve(parts: Sequence[tuple[float, Surgery]]) -> Curve:
    betas = torch.tensor([beta for beta, _ in parts], dtype=torch.float64, device="cpu")
    rows = [(part.rate, part.distortion, part.elbo, part.information) for _, part in parts]
    return Curve(betas, *combined(rows, torch.stack))


def _table(curve: Curve) -> list[str]:
    """Returns a heading and one line of text per beta."""
    lines = [f"{'beta':>8s}" + "".join(f"{name:>20s}" for name in Curve._fields[1:])]
    for index, beta in enumerate(curve.beta.tolist()):
        row = [Estimate(part.value[index], part.error[index]) for part in curve[1:]]
        lines.append(f"{beta:8g}" + "".join(f"{format(part, '.3f'):>20}" for part in row))
    return lines


def _broken(beta: float, data: str, parts: Surgery, entropy: float | None) -> Iterator[Violation]:
    """Yields the bounds that the results for one beta violate."""
    rate, distortion, information = parts.rate, parts.distortion, parts.information
    # All parts are from the same draws, so that this sum is zero up to rounding.
    off = parts.elbo.value + distortion.value + rate.value
    excesses = {
        "ELBO = - distortion - rate": Estimate(off.abs(), parts.elbo.error.new_zeros(())),
        "0 <= information": Estimate(-information.value, information.error),
        "information <= log N": Estimate(information.value - parts.ceiling, information.error),
        "information <= rate": Estimate(information.value - rate.value, parts.mismatch.error),
    }
    if entropy is not None:
        # An upper limit on the error of the sum, since the correlation of the terms is unknown.
        error = information.error + distortion.error
        short = entropy - distortion.value - information.value
        excesses["H - distortion <= information"] = Estimate(short, error)
        excesses["ELBO <= - H"] = Estimate(parts.elbo.value + entropy, parts.elbo.error)
    for bound, excess in excesses.items():
        if bool(excess.value > _ERRORS * excess.error + _ROUNDING):
            yield Violation(beta, data, bound, excess)


def _beaten(point: TradeOff, rival: TradeOff) -> Beaten | None:
    """Returns by how much the objective of `rival` is below that of `point`.

    Returns None if it is not lower, or if the difference is within its error.
    """
    beta = point.beta
    own, other = point.train, rival.train
    distortion = own.distortion.value - other.distortion.value
    value = distortion + beta * (own.rate.value - other.rate.value)
    # The four terms are correlated, since betas share draws; the error of the sum is at most this.
    errors = [part.distortion.error + beta * part.rate.error for part in (own, other)]
    excess = Estimate(value, torch.stack(errors).sum())
    # The rounding error of the rate is multiplied by beta, too.
    clear = bool(value > _CLEAR * excess.error + _ROUNDING * (1 + beta))
    return Beaten(beta, rival.beta, excess) if clear else None


def rate_distortion(  # noqa: PLR0913 (arguments of fit and of the evaluation)
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    betas: Sequence[float | int] = _BETAS,
    *,
    held_out: Data | None = None,
    train_model: bool = True,
    num_epochs: int = 100,
    batch_size: int = 64,
    optimizer: OptimizerFactory = adam,
    num_samples: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> RateDistortion:
    r"""Trains copies of a model and a guide for several KL weights, and evaluates all of them.

    .. math:: \min_{\theta, \phi} D + \beta R, \qquad R = \frac{1}{N} \sum_n
        \mathrm{KL}(q(z \mid y_n) \,\|\, p(z)), \quad
        D = -\frac{1}{N} \sum_n \mathbb{E}_{q(z \mid y_n)} \log p(y_n \mid z)

    Training proceeds from the smallest beta to the largest, whatever their order in the list. The
    first training starts from the given model and guide, and each later one from the solution for
    the previous beta. The reverse order fails. If the weight is so large that q is the prior and
    the decoder ignores z, then q and the decoder have no gradient. When the weight is then reduced,
    z recovers late or never. (On digits, training for 60 epochs at beta 20 and then 60 at beta 1
    ends 0.8 nats worse than training for 60 epochs at beta 0.2 and then 60 at beta 1.) In
    increasing order, latents are dropped when they are not worth their rate. The result for a beta
    builds on the epochs of all smaller betas, so it may depend on the list of betas. To start
    from trained networks, train model and guide with `pv.BetaELBO` before the call.

    The curve shows the lowest distortion that these networks and this training reach at each rate.
    It is not *the* rate-distortion function. With a fixed model (`train_model=False`) only the
    guide is trained. For a beta other than 1 the guide does not approximate the posterior. A guide
    that maximizes the ELBO itself (`Refined`, `ExactPosterior`, `CoordinateAscent`) does so at KL
    weight 1, whatever beta is. Ctrl-C ends training, and the results so far are evaluated and
    returned.

    Arguments:
        model: A Pyro program `model(*batch)`, an `nn.Module` unless `train_model=False`; it is
            copied, not changed.
        guide: A :class:`pyro_vae.Guide`, or a guide program that is an `nn.Module`; it is copied,
            not changed.
        data: The training tensor, or a tuple of tensors. The cost of evaluation grows with the
            square of the number of data.
        betas: The weights, positive.
        held_out: Held-out data, on which models and guides are evaluated, too.
        train_model: Whether the model is trained too, or only the guide.
        num_epochs: Passes over the data for each beta.
        batch_size: Rows per step.
        optimizer: A function that builds a torch optimizer from a list of tensors, as for
            :func:`pyro_vae.fit`.
        num_samples: Draws per datum for the evaluation, at least two; by default chosen
            to take a few seconds.
        seed: Seed of training and of evaluation. The evaluation uses the same draws for every beta.
        progress: Whether to show progress bars; by default on terminals and in notebooks.

    Returns:
        Rate, distortion, ELBO at KL weight 1 and information for each beta, with Monte Carlo errors
        for these data; violated bounds; models and guides.

    Raises:
        ValueError: If a beta is not positive or occurs twice, if the guide would have to be fitted
            to held-out data, or if data, model and guide do not fit together.
        TypeError: If a trained program cannot be copied.

    References:
        | Fixing a Broken ELBO (Alemi et al., 2018)
        | https://arxiv.org/abs/1711.00464
        | beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework
          (Higgins et al., 2017)
        | https://openreview.net/forum?id=Sy2fzU9gl
        | Understanding disentangling in beta-VAE (Burgess et al., 2018)
        | https://arxiv.org/abs/1804.03599

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(1, 4), likelihoods.Bernoulli(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(4)))
        >>> y = torch.eye(4).repeat(2, 1)
        >>> curve = rate_distortion(model, guide, y, (1, 0.5), num_epochs=2, progress=False)
        >>> curve.train.beta, round(curve.entropy, 4), curve.violations
        (tensor([0.5000, 1.0000], dtype=torch.float64), 1.3863, ())
    """
    ascending = _ascending(betas)
    _require_modules({"model": model, "guide": guide} if train_model else {"guide": guide})
    where = device_of(model, guide)
    batch = as_batch(data, where)
    others = None if held_out is None else as_batch(held_out, where, "held_out")
    if others is not None and is_tied_to_rows(guide):
        raise ValueError(
            "this guide has no parameters for held-out data, and fitting them would maximize the "
            "ELBO at KL weight 1, not at beta: pass an amortized guide, or omit `held_out`"
        )
    options = {"batch_size": batch_size, "optimizer": optimizer, "train_model": train_model}
    options |= {"num_epochs": num_epochs, "seed": seed, "progress": progress}
    run = _Run(batch, others, num_samples, options)
    start = _copies(model, guide)
    run.try_out(*start)
    points = tuple(run.points(*start, ascending))
    model, guide = points[-1].model, points[-1].guide
    entropies = [None if rows is None else _entropy(model, guide, rows) for rows in (batch, others)]
    return RateDistortion(points, *entropies)


def _ascending(betas: Sequence[float | int]) -> list[float]:
    """Checks the values of beta, and returns them in ascending order."""
    ascending = sorted(float(beta) for beta in betas)
    proper = all(0 < beta < math.inf for beta in ascending)
    if not ascending or not proper or len(set(ascending)) < len(ascending):
        raise ValueError(
            "`betas` must be one or more distinct, positive, finite numbers (at beta 0, nothing "
            f"limits the rate); got {list(betas)}"
        )
    return ascending


def _require_modules(trained: dict[str, ProgramLike]) -> None:
    """Refuses programs that are to be trained but are not modules.

    `trained` has these programs, under the keys "model" and "guide".
    """
    for role, program in trained.items():
        if not isinstance(program, nn.Module):
            raise TypeError(
                f"`{role}` must be an nn.Module, because a copy with its own weights is trained "
                f"for every beta; got {type(program).__name__} "
                f"'{name_of(program)}'. Write the {role} as a "
                "pyro.nn.PyroModule with the networks as attributes"
                + (", or pass `train_model=False`" if role == "model" else "")
            )


def _copies(model: ProgramLike, guide: ProgramLike) -> tuple[ProgramLike, ProgramLike]:
    """Copies model and guide together, so that the guide's copy refers to the model's copy."""
    return copied((model, guide), {})


class _Run:
    """The data and settings that the runs for all betas share."""

    def __init__(
        self, train: Batch, held_out: Batch | None, draws: int | None, options: dict[str, Any]
    ) -> None:
        self.train, self.held_out, self.draws, self.options = train, held_out, draws, options
        self.seed = options["seed"]

    def try_out(self, model: ProgramLike, guide: ProgramLike) -> None:
        """Evaluates two rows, so that errors are raised before training, not after."""
        check_data(model, self.train)
        if self.held_out is not None:
            check_more_data(model, self.train, self.held_out, "held_out")
        few, draws = take_rows(self.train, slice(2)), self.draws or 2
        # By position, because a guide tied to rows does not have a table for these data yet.
        with minibatch(torch.arange(len(few[0]), device="cpu"), len(self.train[0])):
            surgery(*_copies(model, guide), few, draws, seed=self.seed, progress=False)

    def points(
        self, model: ProgramLike, guide: ProgramLike, betas: list[float]
    ) -> Iterator[TradeOff]:
        """Trains and evaluates for one beta after another, and yields each result.

        Ctrl-C ends training.
        """
        bar = progress_bar(betas, show=self.options["progress"], desc="betas")
        for number, beta in enumerate(bar):
            model, guide = _copies(model, guide)
            try:
                point = self._point(model, guide, beta)
            except KeyboardInterrupt:  # during evaluation: the results of earlier betas are kept
                if number == 0:
                    raise
                return
            yield point
            if point.fit.stopped == "interrupted":
                return

    def _point(self, model: ProgramLike, guide: ProgramLike, beta: float) -> TradeOff:
        """Trains the given copies of model and guide for one beta, and evaluates them."""
        training = fit(model, guide, self.train, objective=BetaELBO(beta), **self.options)
        train, held_out = surgery(model, guide, self.train, self.draws, seed=self.seed), None
        if self.held_out is not None:
            held_out = surgery(model, guide, self.held_out, self.draws, seed=self.seed)
        return TradeOff(beta, train, held_out, model, guide, training)


def _entropy(model: ProgramLike, guide: ProgramLike, batch: Batch) -> float | None:
    """Returns the entropy of the rows; `None` if it cannot be compared with the distortion.

    The two can be compared only if the batch is a single tensor, p(y | z) is a probability, and no
    entry is missing. (The pattern of missing entries would have an entropy, too.)
    """
    with conditioned(model, guide, batch, 0) as (program, _, (y, *others)):
        if others or has_missing(y) or not _gives_probabilities(program, y[:2]):
            return None
    counts = row_digests(y).unique(return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log()).sum())


def _gives_probabilities(program: Program, y: Tensor) -> bool:
    """Returns whether p(y | z) is the probability of the whole datum.

    It is not if the likelihood is a density, which may exceed 1; if a mask leaves out part of the
    datum; if the program has a factor or a second observed site; or if the site observes a function
    of the datum, which may have less entropy than the datum.
    """
    z = torch.zeros(1, len(y), program.latent_dim, dtype=program.dtype, device=y.device)
    if len(program.observed_names) != 1:
        return False
    site = program.traced(z, y)[1][program.observed_names[0]]
    whole = site.value.shape == y.shape and bool((site.value == y).all())
    return site.is_discrete and whole and not site.is_masked
