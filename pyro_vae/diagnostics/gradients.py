r"""The noise of the training gradient.

One evaluation of a loss gives a draw :math:`g` of its gradient. Draws at the same parameters have a
mean, which is the signal, and a variance, which is the noise. The signal-to-noise ratio (SNR) is
the absolute mean divided by the standard deviation. For the signal to emerge, training has to
average about :math:`1 / \mathrm{SNR}^2` draws, over steps or over data.

The noise depends on how the gradient is estimated. An example is :math:`\mathbb{E}_q f(z)` with
:math:`f = -|z|^2 / 2` and :math:`q = N(\mu, I_d)` at :math:`\mu = 0`. Here a draw of the gradient
with respect to an entry of :math:`\mu` is

* :math:`-z_i` along the path :math:`z = \mu + \epsilon`, with variance 1;
* :math:`f(z) \, z_i` as a score function, with variance :math:`(d + 2)(d + 4) / 4`;
* :math:`(f(z) - b) \, z_i` with the best constant baseline, with variance :math:`(d + 2) / 2`.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from jaxtyping import Float64
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .._types import Batch, Data, Distribution, Estimate, ProgramLike
from ..evidence.weights import conditioned
from ..formatting import count_of, plus_minus
from ..guides.entry import updated_by_maps
from ..objectives import Objective
from ..objectives.base import Differentiable
from ..programs import Program, evaluating
from ..programs.modes import modules_of
from ..programs.plates import current_minibatch
from ..programs.traces import leaves_of
from ..progress import progress_bar
from ..randomness import forked
from ..results import Result
from ..training.tensors import State, named, require_finite

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLOCKS = 32  # blocks of draws for the jackknife; standard errors are then accurate to 1/8

_Statistic = Callable[["_Sums"], Tensor]


@dataclass(frozen=True)
class _Sums:
    """Sums over draws of the gradient.

    `first` is the sum of the differences between the draws and `origin`; `second` is the sum of the
    squares of these differences.
    """

    count: int
    origin: Float64[Tensor, " entries"]
    first: Float64[Tensor, " entries"]
    second: Float64[Tensor, " entries"]

    @property
    def mean(self) -> Tensor:
        return self.origin + self.first / self.count

    @property
    def variance(self) -> Tensor:
        squares = self.second - self.first.square() / self.count
        return (squares / (self.count - 1)).clamp(min=0)

    @property
    def signal_to_noise(self) -> Tensor:
        return self.mean.abs() / self.variance.sqrt()


@dataclass(frozen=True, repr=False)
class ParameterNoise(Result):
    """Mean and noise of the gradient of one parameter; every field has the parameter's shape.

    Arguments:
        mean: Gradient of the loss per datum, in nats per unit of the parameter.
        variance: Variance of one draw of the gradient.
        signal_to_noise: Absolute mean divided by standard deviation; nan where both are zero.
    """

    mean: Estimate
    variance: Estimate
    signal_to_noise: Estimate

    def summary(self) -> str:
        """States the median, lowest and highest signal-to-noise ratio of a parameter's entries."""
        ratios = self.signal_to_noise.value.flatten()
        known = ratios[~ratios.isnan()]
        if not len(known):
            return f"{count_of(len(ratios), 'entry')}; their gradient is always zero"
        low, middle, high = (float(part) for part in (known.min(), known.median(), known.max()))
        return (
            f"signal-to-noise ratio of one draw: median over entries {middle:.3g}, from {low:.3g} "
            f"to {high:.3g} ({count_of(len(ratios), 'entry')}, {len(ratios) - len(known)} without "
            "a gradient)"
        )

    def plot(self) -> "Axes":
        """Plots the signal-to-noise ratio of every entry, lowest first; needs matplotlib."""
        from ..plots import plot_per_datum

        value, error = (part.flatten() for part in self.signal_to_noise)
        ax = plot_per_datum(value, error, ~value.isnan(), name="signal to noise of one draw")
        ax.set_xlabel("entries of the parameter, lowest first")
        return ax


@dataclass(frozen=True, repr=False)
class GradientNoise(Result):
    r"""Mean, variance and signal-to-noise ratio of draws of a gradient.

    Arguments:
        num_repeats: Number of draws of the gradient, :math:`R`.
        shapes: Shape of every parameter, by its name, which usually starts with `guide` or `model`.
        counts: Number of draws in each block of draws, `(blocks,)`.
        origin: The first gradient, flattened over all parameters, `(entries,)`.
        first: Differences between gradients and `origin`, summed over each block,
            `(blocks, entries)`.
        second: Squares of these differences, summed over each block, `(blocks, entries)`.
    """

    num_repeats: int
    shapes: dict[str, torch.Size]
    counts: tuple[int, ...]
    origin: Float64[Tensor, " entries"]
    first: Float64[Tensor, "blocks entries"]
    second: Float64[Tensor, "blocks entries"]

    def plot(self) -> "Axes":
        """Plots the signal-to-noise ratio of each parameter; needs matplotlib."""
        from ..plots import plot_comparison

        ratios = {name: self.of(name, exactly=True).signal_to_noise for name in self.shapes}
        ax = plot_comparison({name: {"signal to noise": ratio} for name, ratio in ratios.items()})
        ax.set_xlabel("signal to noise of one draw (± 1 standard error)")
        return ax

    @cached_property
    def _all(self) -> _Sums:
        return _Sums(sum(self.counts), self.origin, self.first.sum(0), self.second.sum(0))

    def _estimate(self, statistic: _Statistic) -> Estimate:
        """Computes a statistic of all gradient draws, with its jackknife error over blocks."""
        whole = self._all
        blocks = zip(self.counts, self.first, self.second, strict=True)
        others = (  # for each block of draws, the sums over all other blocks
            _Sums(whole.count - count, self.origin, whole.first - first, whole.second - second)
            for count, first, second in blocks
        )
        without = torch.stack([statistic(sums) for sums in others])
        spread = (without - without.mean(dim=0)).square().sum(dim=0)
        return Estimate(statistic(whole), (spread * (len(without) - 1) / len(without)).sqrt())

    def parameter(self, name: str) -> ParameterNoise:
        """Returns mean, variance and signal-to-noise ratio for one parameter, entry by entry.

        Raises:
            ValueError: If no parameter has this name.
        """
        part = self.of(name, exactly=True)
        shape = part.shapes[name]
        statistics: tuple[_Statistic, ...] = (
            lambda sums: sums.mean,
            lambda sums: sums.variance,
            lambda sums: sums.signal_to_noise,
        )
        estimates = (part._estimate(statistic) for statistic in statistics)  # noqa: SLF001 (of its own class)
        shaped = (Estimate(*(field.view(shape) for field in pair)) for pair in estimates)
        return ParameterNoise(*shaped)

    def of(self, start: str, *, exactly: bool = False) -> "GradientNoise":
        """Selects the parameters whose names begin with `start`, such as "guide" or "model".

        Arguments:
            start: The beginning of the names.
            exactly: Whether `start` must be the whole name.

        Raises:
            ValueError: If no parameter has such a name.
        """
        names = [n for n in self.shapes if (n == start if exactly else n.startswith(start))]
        if not names:
            raise ValueError(
                f"no parameter has {'the name' if exactly else 'a name that starts with'} "
                f"'{start}': choose from {list(self.shapes)}"
            )
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        every = torch.arange(sum(sizes), device="cpu")
        places = dict(zip(self.shapes, every.split(sizes), strict=True))
        chosen = torch.cat([places[name] for name in names])
        return GradientNoise(
            self.num_repeats,
            {name: self.shapes[name] for name in names},
            self.counts,
            self.origin[chosen],
            self.first[:, chosen],
            self.second[:, chosen],
        )

    @property
    def variance(self) -> Estimate:
        """Variance of one draw of the gradient, averaged over all entries of the gradient."""
        return self._estimate(lambda sums: sums.variance.mean())

    @property
    def signal_to_noise(self) -> Estimate:
        r"""Ratio of the gradient's absolute mean to its standard deviation, averaged over entries.

        Entries whose gradient is always zero are left out. For pure noise the ratio is on average
        :attr:`floor`, not 0.
        """
        return self._estimate(lambda sums: sums.signal_to_noise.nanmean())

    @property
    def floor(self) -> float:
        r"""Expected signal-to-noise ratio of pure noise in R draws, :math:`\sqrt{2 / (\pi R)}`."""
        return math.sqrt(2 / (math.pi * self.num_repeats))

    @property
    def verdict(self) -> str:
        """States the signal-to-noise ratio of one draw, and how many draws must be averaged."""
        value, error = (float(part) for part in self.signal_to_noise)
        if math.isnan(value):
            return "the gradient is zero for every draw, so there is neither signal nor noise"
        if math.isinf(value):
            return self._verdict_without_noise()
        ratio = (
            f"signal-to-noise ratio {plus_minus(value, error, '.2g')} of one draw, averaged over "
            f"{count_of(len(self.origin), 'entry')}"
        )
        if value < 2 * self.floor:
            return (
                f"{ratio}: noise alone gives {self.floor:.2g} with "
                f"{count_of(self.num_repeats, 'repeat')}, so the signal cannot be measured; pass a "
                "larger `num_repeats`"
            )
        needed = math.ceil(value**-2)
        if needed == 1:
            return f"{ratio}: one draw has more signal than noise"
        return (
            f"{ratio}: about {count_of(needed, 'draw')} have to be averaged for as much signal as "
            "noise"
        )

    def _verdict_without_noise(self) -> str:
        """Says how many entries of the gradient are the same in every draw."""
        ratios = self._all.signal_to_noise
        still, moving = int(ratios.isinf().sum()), int(ratios.isfinite().sum())
        if moving == 0:
            return "the gradient is the same for every draw, so it has no noise"
        return (
            f"the gradient of {count_of(still, 'entry')} is the same for every draw, so the "
            f"average signal-to-noise ratio is infinite; {count_of(moving, 'entry')} "
            f"{'has' if moving == 1 else 'have'} noise: look at each parameter with "
            "`parameter(name)`"
        )

    def summary(self) -> str:
        """Returns one line of text per parameter, then the verdict."""
        parts = {name: self.of(name, exactly=True) for name in self.shapes}
        lines = [
            f"{name} {tuple(part.shapes[name])}: signal to noise {part.signal_to_noise:.3g}, "
            f"variance {part.variance:.3g}"
            for name, part in parts.items()
        ]
        return "\n".join([*lines, self.verdict])


def gradient_noise(
    objective: ELBO,
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    num_repeats: int = 100,
    seed: int = 0,
    progress: bool | None = None,
) -> GradientNoise:
    r"""Measures the noise of an objective's gradient, by repeated draws at the same parameters.

    .. math:: \bar g = \frac{1}{R} \sum_r g_r, \qquad
        s^2 = \frac{1}{R - 1} \sum_r (g_r - \bar g)^2, \qquad \mathrm{SNR} = |\bar g| / s

    Each :math:`g_r` is the gradient of the loss per datum, averaged over all the given data: the
    gradient of one step of :func:`pyro_vae.fit` with these data as its batch. The average over N
    data has 1/N of the variance for one datum. Modules are in training mode, as in `fit`, so that
    dropout is part of the noise. Afterwards every buffer and parameter is restored. For some rows
    of a larger data set, call this function inside `with pv.minibatch(rows, num_data):`.

    Arguments:
        objective: An objective of :mod:`pyro_vae.objectives`, or any ELBO of Pyro.
        model: The Pyro program.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand. A guide wrapped in
            :func:`score_function` has draws without a path gradient.
        data: The batch tensor, or a tuple of tensors.
        num_repeats: Draws of the gradient, :math:`R`. A ratio below :math:`1 / \sqrt R` cannot be
            distinguished from zero.
        seed: Seed of the draws; the caller's random stream is left alone.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        Mean, variance and signal-to-noise ratio for every entry of each parameter, and averages
        with errors. The result keeps 65 numbers in main memory for each entry.

    Raises:
        ValueError: If there are fewer than 3 repeats, the loss depends on no tensor that requires a
            gradient, or data and programs do not fit together.
        FloatingPointError: If a gradient is not finite; the message names the parameter.

    References:
        | Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        | https://arxiv.org/abs/1802.04537

    Example:
        >>> from pyro_vae import Encoder, Guide, IWAE, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Bernoulli(), latent_dim=1)
        >>> guide = Guide(model, Encoder(torch.nn.Linear(3, 2)))
        >>> noise = gradient_noise(IWAE(5), model, guide, torch.ones(4, 3), num_repeats=10)
        >>> list(noise.shapes)
        ['guide.map.net.weight', 'guide.map.net.bias', 'model.decoder.weight', 'model.decoder.bias']
        >>> noise.parameter("model.decoder.bias").variance.value.shape
        torch.Size([3])
    """
    if num_repeats < 3:
        raise ValueError(
            "`num_repeats` must be at least 3, so that variances have standard errors; got "
            f"{num_repeats}"
        )
    with conditioned(model, guide, data, seed) as (program, _, batch):
        pass  # only checks that data, model and guide fit together
    with _as_in_training(model, guide), forked(seed, "gradients"):
        gradients = _Gradients(objective, model, guide, batch, program)
        return _measured(gradients, num_repeats, progress=progress)


@contextmanager
def _as_in_training(model: ProgramLike, guide: ProgramLike) -> Iterator[None]:
    """Sets training mode for a `with` block, then restores modes, buffers and parameters."""
    with evaluating(model, guide), warnings.catch_warnings():
        # Pyro only warns of gradients that are not finite; here an error names the parameter.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf)", UserWarning)
        state = State.of(model, guide, ())
        for module in (part for one in (model, guide) for part in modules_of(one)):
            module.train()
        try:
            yield
        finally:
            state.restore()


class _Gradients:
    """Draws gradients of the loss per datum with respect to all trainable tensors of the loss."""

    def __init__(
        self,
        objective: Any,
        model: ProgramLike,
        guide: ProgramLike,
        batch: Batch,
        program: Program,
    ) -> None:
        self.objective, self.guide, self.batch = objective, guide, batch
        # This library's objectives sum out discrete sites themselves; Pyro's need a marked model.
        is_own = isinstance(objective, Objective)
        self.model = model if is_own else program.enumerating(model)
        current = current_minibatch()
        self.num_data = (
            program.structure.sizes(len(batch[0]))[0] if current is None else current.num_data
        )
        # Trace_ELBO depends on the same tensors as an objective without a differentiable loss.
        loss = objective if isinstance(objective, Differentiable) else Trace_ELBO()
        leaves = leaves_of(loss.differentiable_loss(self.model, guide, *batch))
        if not leaves:
            raise ValueError(
                "the loss depends on no tensor with requires_grad=True, so there are no gradients: "
                "call guide.requires_grad_() or model.requires_grad_()"
            )
        self.tensors = named(list(leaves), model, guide)
        if loss is not objective and updated_by_maps(guide, self.tensors.values()):
            raise ValueError(
                f"{type(objective).__name__} has no method differentiable_loss, so measuring its "
                "gradients would also train the parameters in pv.LocalParameters: use Trace_ELBO, "
                "or an objective from pv.objectives"
            )

    def draw(self) -> Float64[Tensor, " entries"]:
        """Draws one gradient, flattened over all parameters."""
        tensors = list(self.tensors.values())
        drawn: Sequence[Tensor | None]
        if isinstance(self.objective, Differentiable):
            loss = self.objective.differentiable_loss(self.model, self.guide, *self.batch)
            drawn = torch.autograd.grad(loss, tensors, allow_unused=True)
        else:
            drawn = self._accumulated(tensors)
        parts = []
        for (name, tensor), gradient in zip(self.tensors.items(), drawn, strict=True):
            gradient = torch.zeros_like(tensor) if gradient is None else gradient
            require_finite(name, gradient)
            parts.append(gradient.detach().double().cpu().flatten() / self.num_data)
        return torch.cat(parts)

    def _accumulated(self, tensors: list[Tensor]) -> list[Tensor | None]:
        """Returns the gradients that `loss_and_grads` writes to `.grad`, then restores `.grad`."""
        before = [tensor.grad for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.grad = None
            self.objective.loss_and_grads(self.model, self.guide, *self.batch)
            return [tensor.grad for tensor in tensors]
        finally:
            for tensor, gradient in zip(tensors, before, strict=True):
                tensor.grad = gradient


def _measured(gradients: _Gradients, num_repeats: int, *, progress: bool | None) -> GradientNoise:
    """Draws gradients, and sums their differences from the first gradient, block by block."""
    blocks = min(_BLOCKS, num_repeats)
    bar = progress_bar(range(num_repeats), show=progress, desc="gradients")
    origin = first = second = torch.zeros(0, device="cpu")
    counts = [0] * blocks
    for repeat in bar:
        gradient = gradients.draw()
        if repeat == 0:
            origin = gradient
            first, second = gradient.new_zeros(2, blocks, len(gradient))
        place = repeat % blocks
        counts[place] += 1
        first[place] += gradient - origin
        second[place] += (gradient - origin).square()
    shapes = {name: tensor.shape for name, tensor in gradients.tensors.items()}
    return GradientNoise(num_repeats, shapes, tuple(counts), origin, first, second)


@dataclass(frozen=True)
class ScoreFunction:
    """A guide whose draws carry no path gradient; see :func:`score_function`."""

    guide: ProgramLike

    def __call__(self, *batch: Tensor) -> Any:
        """Runs the guide with its draws detached from the parameters."""
        with _NoPath():
            return self.guide(*batch)


def score_function(guide: ProgramLike) -> ScoreFunction:
    r"""Wraps a guide so that its gradients are score-function gradients, not path gradients.

    .. math:: \nabla_\phi \mathbb{E}_q f(z) = \mathbb{E}_q f(z) \nabla_\phi \log q_\phi(z)

    Every draw of the guide is detached from the parameters, but its density is not. Pyro's
    `Trace_ELBO` and `TraceGraph_ELBO` then use the score function automatically; `TraceGraph_ELBO`
    also uses the baselines set at the sites. The objectives of this library need a path gradient
    and refuse such a guide.

    Arguments:
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.

    Returns:
        A guide program, which shares its parameters with the given guide.

    References:
        | Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement Learning
          (Williams, 1992)
        | https://doi.org/10.1007/BF00992696
        | Black Box Variational Inference (Ranganath et al., 2014)
        | https://arxiv.org/abs/1401.0118

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Bernoulli(), latent_dim=1)
        >>> guide = Guide(model, Encoder(torch.nn.Linear(3, 2)))
        >>> y = torch.ones(4, 3)
        >>> path = gradient_noise(Trace_ELBO(), model, guide, y)
        >>> score = gradient_noise(Trace_ELBO(), model, score_function(guide), y)
        >>> bool(score.of("guide").variance.value > path.of("guide").variance.value)
        True
    """
    return ScoreFunction(guide)


class _NoPath(Messenger):
    """Removes the path gradient of samples.

    Samples from point masses keep their path gradient, because they have no other gradient.
    """

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if not msg["is_observed"] and fn.has_rsample and not isinstance(fn, dist.Delta):
            msg["fn"] = _Detached(fn)


class _Detached(dist.TorchDistribution):
    """Wraps a distribution and declares that it cannot be reparameterized."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012  (torch's declaration)
    has_rsample = False

    def __init__(self, base: Distribution) -> None:
        self.base = base
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """Support of the wrapped distribution."""
        return self.base.support

    @property
    def mean(self) -> Tensor:
        """Mean of the wrapped distribution."""
        return self.base.mean

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_Detached":
        """Expands the distribution; draws from the result have no path gradient either."""
        return _Detached(self.base.expand(batch_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Returns draws without a gradient."""
        return self.base.sample(torch.Size(sample_shape)).detach()

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log density of the wrapped distribution, with its gradient."""
        return self.base.log_prob(value)
