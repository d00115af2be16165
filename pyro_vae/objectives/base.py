r"""The base of all objectives: a bound for each datum, scaled and summed over the data.

The global latent sites :math:`g` are drawn once. The local latents are drawn :math:`K` times per
datum, which gives the weights :math:`w_{kn} = p(y_n, z_{kn} \mid g) / q(z_{kn} \mid y_n, g)`. An
objective is a function :math:`\mathcal{L}` of the weights of one datum. A batch of :math:`B` out of
:math:`N` rows estimates the bound on the whole data set,

.. math:: \frac{N}{B} \sum_{b=1}^{B} \mathcal{L}(w_{1b}, \ldots, w_{Kb})
    + \log p(g) - \log q(g) .

The factor :math:`N / B` must stay outside the logarithm: the logarithm of
:math:`\frac{1}{K} \sum_k w_k^{N/B}` is not an estimate of a bound. The global sites have an ELBO
term of their own. If these sites were part of the weights, every weight would depend on all data.

The rows come from :func:`pyro_vae.minibatch`, or from a plate that subsamples the data. If
`poutine.scale` scales all of the model's sites in the plate, this scale multiplies the bound of
every datum. A scale of the sites outside the plate multiplies the term of these sites. Both scales
change the loss, but not the reported ELBO. Scales in the guide, and handlers around the call, are
ignored.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from torch import Tensor

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..guides import Draws
from ..guides.draws import draw
from ..guides.entry import program_of
from ..programs import Program, Run, TracedSite, minibatch
from ..programs.pieces import take_rows
from ..programs.plates import current_minibatch
from ..programs.traces import total_log_prob


@runtime_checkable
class Differentiable(Protocol):
    """An ELBO with a `differentiable_loss`, a method that Pyro's base class does not declare."""

    def differentiable_loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Tensor:
        """Returns the loss, a scalar in nats: minus the bound on log p(y) of the whole data set."""


@runtime_checkable
class Schedule(Protocol):
    """A weight, such as that of the KL term, which changes during training."""

    @property
    def length(self) -> float:
        """Number of epochs of the schedule.

        Early stopping and the search for the best state start after these epochs.
        """

    def __call__(self, epoch: float | int) -> float:
        """Returns the weight at an epoch. Epochs are counted from 0, and can be fractions."""

    def check(self, num_epochs: int) -> None:
        """Refuses a training run that ends before the schedule is complete."""


@dataclass(frozen=True)
class LinearWarmup:
    r"""A weight that rises linearly with the epoch from `start` to `end`, and then stays at `end`.

    .. math:: \beta(t) = \text{start} + (\text{end} - \text{start}) \min(1, t / \text{epochs})

    Arguments:
        epochs: Number of epochs over which the weight rises.
        start: The first weight.
        end: The last weight.

    Raises:
        ValueError: If `epochs` is not positive, or a weight is negative.

    References:
        | Generating Sentences from a Continuous Space (Bowman et al., 2016)
        | https://arxiv.org/abs/1511.06349

    Example:
        >>> LinearWarmup(epochs=10)(5.0)
        0.5
    """

    epochs: float | int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("epochs", self.epochs, self.start, self.end)

    @property
    def length(self) -> float:
        """Number of epochs until the final weight is reached."""
        return float(self.epochs)

    def __call__(self, epoch: float | int) -> float:
        """Returns the weight after a number of epochs."""
        return self.start + (self.end - self.start) * min(1.0, epoch / self.epochs)

    def check(self, num_epochs: int) -> None:
        """Refuses training that ends before the final weight is reached."""
        if self.epochs >= num_epochs:
            raise ValueError(
                "the KL warm-up must end before training does, so that the model is also trained "
                f"at the final weight; got a warm-up of {count_of(self.epochs, 'epoch')} in "
                f"{count_of(num_epochs, 'epoch')} of training: pass a larger `num_epochs`, or a "
                "shorter warm-up"
            )


@dataclass(frozen=True)
class Cyclic:
    r"""A weight that in every cycle rises linearly from `start` to `end`, and then stays at `end`.

    .. math:: \beta(t) = \text{start} + (\text{end} - \text{start})
        \min\left(1, \frac{(t \bmod T) / T}{\text{rising}}\right)

    Arguments:
        period: Number of epochs of one cycle, :math:`T`.
        rising: Share of a cycle in which the weight rises.
        start: The weight at the start of a cycle.
        end: The weight at the end of a cycle.

    Raises:
        ValueError: If `period` is not positive, `rising` is not in (0, 1], or a weight is negative.

    References:
        | Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing
          (Fu et al., 2019)
        | https://arxiv.org/abs/1903.10145

    Example:
        >>> [Cyclic(period=10)(epoch) for epoch in (0.0, 2.5, 7.0, 12.5)]
        [0.0, 0.5, 1.0, 0.5]
    """

    period: float | int
    rising: float = 0.5
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        _check("period", self.period, self.start, self.end)
        if not 0 < self.rising <= 1:
            raise ValueError(f"`rising` must be a share of a cycle, in (0, 1]; got {self.rising}")

    @property
    def length(self) -> float:
        """Number of epochs of one cycle."""
        return float(self.period)

    def __call__(self, epoch: float | int) -> float:
        """Returns the weight after a number of epochs."""
        share = (epoch % self.period) / self.period
        return self.start + (self.end - self.start) * min(1.0, share / self.rising)

    def check(self, num_epochs: int) -> None:
        """Refuses training that ends within the first cycle."""
        if self.period > num_epochs:
            raise ValueError(
                f"a cycle of the KL weight takes {count_of(self.period, 'epoch')}, but training "
                f"has only {count_of(num_epochs, 'epoch')}: train for at least one cycle"
            )


def _check(name: str, length: float | int, start: float, end: float) -> None:
    if not length > 0:
        raise ValueError(f"`{name}` must be positive; got {length}")
    if start < 0 or end < 0:
        raise ValueError(
            f"`start` and `end`, the weights of the KL term, must be at least 0; got start={start} "
            f"and end={end}"
        )


class Progress(NamedTuple):
    """The loss and the plain ELBO at the same draws; both are scalars for the data set, in nats.

    Arguments:
        loss: The scalar to minimize: minus the bound, with a gradient.
        elbo: The plain ELBO: its KL weight is 1, and the program's scales are left out. It has no
            gradient. Higher is better.
        scale: Scale that the program gives its sites by `poutine.scale`; the loss is multiplied by
            this scale.
    """

    loss: Tensor
    elbo: Tensor
    scale: float = 1.0

    @property
    def unscaled(self) -> Tensor:
        """The loss without the program's scale, and without a gradient."""
        loss = self.loss.detach()
        return loss if self.scale == 1 else loss / self.scale

    def of_one(self, num_data: int) -> "Progress":
        """Returns a copy in which loss and ELBO, but not the scale, are divided by `num_data`."""
        return Progress(self.loss / num_data, self.elbo / num_data, self.scale)


class Particles(NamedTuple):
    """Log densities at the draws, `(particles, batch)`, in nats, and the draws themselves."""

    prior: Tensor
    likelihood: Tensor
    log_guide: Tensor
    z: Tensor

    @property
    def log_weights(self) -> Tensor:
        r"""Returns the log weights, `(particles, batch)`, in nats."""
        return self.prior + self.likelihood - self.log_guide


class _Known(NamedTuple):
    """The `Program` of a model, with the model and the forms of data that it was made for.

    `forms` holds, for each tensor of the batch, the shape of a datum, the dtype and the device.
    """

    model: ProgramLike
    forms: tuple[tuple[torch.Size, torch.dtype, torch.device], ...]
    program: Program


class _Shared(NamedTuple):
    """Log densities and scale of the sites outside the plate, and scale of those in the plate."""

    prior: Tensor
    likelihood: Tensor
    scale: float
    inside_scale: float


class Objective(ELBO):
    """An objective, with a bound for each datum; `pv.fit` and `SVI` minimize minus the bound.

    A new objective must define :meth:`bound`. An objective that changes the plain reparameterized
    gradient must also define :meth:`particles`.
    """

    num_particles: int

    @abstractmethod
    def bound(self, particles: Particles) -> Tensor:
        """Returns the bound of every datum, `(batch,)`, in nats."""

    def particles(self, draws: Draws, batch: Batch) -> tuple[Particles, Run]:
        """Computes the log densities of the draws, with plain reparameterized gradients."""
        densities, run = draws.program.traced(draws.z, *batch)
        return Particles(*densities, draws.log_guide, draws.z), run

    @property
    def kl_weight(self) -> float:
        """The weight of the KL term, which is 1 unless the objective has a `beta`."""
        return 1.0

    def at(self, epoch: float | int) -> "Objective":
        """Returns the objective with its schedule, if there is one, set to `epoch`."""
        return self

    @property
    def warmup(self) -> float:
        """Number of epochs of the objective's schedule; 0 if there is no schedule."""
        return 0.0

    def check(self, num_epochs: int) -> None:
        """Refuses a training run that is too short for the schedule, if there is one."""

    def progress(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Progress:
        """Returns the loss, which has a gradient, and the plain ELBO at the same draws.

        Arguments:
            model: A Pyro program `model(*batch)` with one plate over data.
            guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
            batch: The arguments of both model and guide.

        Returns:
            Loss and ELBO for the whole data set, in nats, estimated from one set of draws.

        Raises:
            ValueError: If the model's sites in the plate have different scales, or the
                guide cannot be reparameterized or does not fit the model.
        """
        program = self._program(model, guide, batch)
        with _rows(program, batch) as (taken, scale):
            draws = draw(guide, program, taken, self.num_particles)
            particles, run = self.particles(draws, taken)
            shared = _shared(draws.program, run)
            local = (self.bound(particles) + draws.terms).sum()
            plain = particles.log_weights.detach().mean(dim=0).sum()
        kl = shared.prior - draws.log_shared
        outer = shared.scale * (self.kl_weight * kl + shared.likelihood)
        total = scale * shared.inside_scale * local + outer + draws.shared_terms
        elbo = scale * plain + (kl + shared.likelihood).detach()  # reported, so never scaled
        return Progress(-total, elbo, shared.inside_scale or 1.0)

    def differentiable_loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Tensor:
        """Returns minus the bound on the data set, a scalar in nats with a gradient."""
        return self.progress(model, guide, *batch).loss

    @torch.no_grad()
    def loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> float:
        """Returns minus the bound on the data set, in nats."""
        return self.differentiable_loss(model, guide, *batch).item()

    def loss_and_grads(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> float:
        """Returns the loss in nats, and adds the loss's gradients to the parameters' `grad`."""
        loss = self.differentiable_loss(model, guide, *batch)
        if loss.requires_grad:
            loss.backward()
        return loss.item()

    def _get_trace(self, model: ProgramLike, guide: ProgramLike, args: Any, kwargs: Any) -> Any:
        """Returns a trace of the model and a trace of the guide, for Pyro's tools."""
        return get_importance_trace("flat", float("inf"), model, guide, args, kwargs)

    @cached_property
    def _known(self) -> list[_Known]:
        """A list with the `Program` that was made last; at first, the list is empty.

        This `Program` is kept because making another takes several runs of the model.
        """
        return []

    def _program(self, model: ProgramLike, guide: ProgramLike, batch: Batch) -> Program:
        """Returns the `Program` of a model; the last one is reused if it fits.

        It fits if the model is the same, and each tensor has the same shape per datum, dtype and
        device.
        """
        forms = tuple((part.shape[1:], part.dtype, part.device) for part in batch)
        for known in self._known:
            if known.model == model and known.forms == forms:
                return known.program
        program = program_of(model, guide, batch)
        self._known[:] = [_Known(model, forms, program)]
        return program


@contextmanager
def _rows(program: Program, batch: Batch) -> Iterator[tuple[Batch, float]]:
    """Yields the data of a step, and how many rows of the data set each datum represents."""
    current, rows = current_minibatch(), len(batch[0])
    if current is not None:
        yield batch, current.num_data / rows
        return
    size, chosen = program.structure.sizes(rows)
    if not program.structure.takes_all_data:
        yield batch, size / (chosen or size)
        return
    positions = torch.randperm(rows, device="cpu")[:chosen]
    with minibatch(positions, rows, plate=program.plate):
        yield take_rows(batch, positions), size / len(positions)


def _shared(program: Program, run: Run) -> _Shared:
    """Sums the log densities of sites outside the plate, and finds the scales of all sites."""
    outside, names = run.outside, {site.name for site in program.global_sites}
    latent = [site for name, site in outside.items() if name in names]
    observed = [site for name, site in outside.items() if name not in names]
    zero = torch.zeros((), dtype=program.dtype, device=program.device)
    return _Shared(
        total_log_prob(latent, zero),
        total_log_prob(observed, zero),
        _scale_of(outside),
        _scale_of(run.inside),
    )


def _scale_of(sites: dict[str, TracedSite]) -> float:
    """Returns the scale that all of these sites have; refuses sites with different scales."""
    scales = {name: site.scale for name, site in sites.items()}
    numbers = {
        None if isinstance(scale, Tensor) and scale.numel() != 1 else float(scale)
        for scale in scales.values()
    }
    number, *others = numbers or {1.0}
    if number is None or others:
        tensors = [torch.as_tensor(scale, dtype=torch.float64) for scale in scales.values()]
        pairs = zip(tensors, scales, strict=True)
        shown = ", ".join(f"{scale.tolist()} at site '{name}'" for scale, name in pairs)
        raise ValueError(
            "all sites of the model must have the same scale, so that importance weights are "
            f"ratios of densities; got the scales {shown}: scale all sites by the same number, "
            "and use pv.BetaELBO(...) to weight the KL term"
        )
    return number
