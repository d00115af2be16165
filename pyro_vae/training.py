r"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches.

Each step draws a batch of :math:`B` rows, estimates the loss of the whole data set from it
(every site in the plate over data scaled by :math:`N / B`), and takes a step of a torch optimizer
on all leaves of the loss's autograd graph, so nothing is left untrained because nobody
registered it. What is reported is the ELBO a datum, at full KL weight, whatever is optimized.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import evidence
from ._types import Batch, Data, Estimate, ProgramLike
from .data import check_batch, warn_constant_columns
from .guides import FitRows, Guide, posterior_of, program_of
from .programs import (
    as_batch,
    device_of,
    evaluating,
    forked_seed,
    minibatch,
    modules_of,
)

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]

_VALIDATION_DRAWS = 10  # the error over data is larger than that of ten draws a datum


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """Adam with step size 1e-3, the default optimizer."""
    return torch.optim.Adam(parameters, lr=1e-3)


def constant(optimizer: torch.optim.Optimizer) -> Any:
    """Leaves the step size as it is."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)


def hold_then_fall(num_epochs: int) -> SchedulerFactory:
    r"""The default schedule: constant for half of the epochs, then down to zero along a cosine.

    The first half travels; the second one settles, since at a constant step size the parameters
    keep jittering with the noise of the gradient, which costs a fraction of a nat.

    References:
        | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
        | https://arxiv.org/abs/1608.03983

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> hold_then_fall(4)(optimizer).lr_lambdas[0](3)
        0.5
    """

    def factor(epoch: int) -> float:
        progress = max(0.0, 2 * epoch / num_epochs - 1)  # 0 until half time, 1 at the end
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class History:
    """What happened in each epoch; arrays `(epochs,)`, ELBOs in nats a datum.

    Arguments:
        epoch: 1, 2, ...
        elbo: ELBO of the training data at full KL weight, averaged over the epoch's steps.
        validation_elbo: ELBO of the validation data after the epoch; nan without any.
        validation_error: Its Monte Carlo error.
        kl_weight: Weight of the KL term in the last step's loss.
        learning_rate: Of the first parameter group.
        seconds: Since the start of training.
    """

    epoch: NDArray[np.generic]
    elbo: NDArray[np.generic]
    validation_elbo: NDArray[np.generic]
    validation_error: NDArray[np.generic]
    kl_weight: NDArray[np.generic]
    learning_rate: NDArray[np.generic]
    seconds: NDArray[np.generic]


@dataclass(frozen=True)
class Fit:
    """What training gave; model and guide hold the result.

    Arguments:
        history: Epoch by epoch.
        stopped: "finished", "early" or "interrupted".
        best_epoch: Epoch whose state was kept: the best by validation, else the last one.
        seed: Seed of the run.
        trained: Names of the trained tensors; one that no module registered is named by its
            shape.
    """

    history: History
    stopped: str
    best_epoch: int
    seed: int
    trained: tuple[str, ...]

    def summary(self) -> str:
        """Says how training ended, in a line."""
        epochs = len(self.history.epoch)
        if epochs == 0:
            return f"{self.stopped} before the end of the first epoch"
        return (
            f"{self.stopped} after {epochs} epochs and {self.history.seconds[-1]:.1f} s; "
            f"training ELBO {self.history.elbo[-1]:.3f} nats a datum; kept epoch {self.best_epoch}"
        )


@dataclass(frozen=True)
class _Plan:
    """How to train, as `fit` was told."""

    num_epochs: int
    batch_size: int
    objective: Any  # an ELBO; the base class does not declare differentiable_loss
    optimizer: OptimizerFactory
    scheduler: SchedulerFactory
    patience: int | None
    warmup: int
    per_batch: Callable[[Tensor], Tensor] | None
    train_model: bool
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        for name in ("num_epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1, got {getattr(self, name)}")
        if not 0 <= self.warmup < self.num_epochs:
            raise ValueError(
                f"the KL warm-up takes {self.warmup} of {self.num_epochs} epochs: it has to end "
                "before training does, or the model is never trained on the ELBO"
            )
        if not hasattr(self.objective, "differentiable_loss"):
            raise TypeError(
                f"{type(self.objective).__name__} has no differentiable_loss, which fit needs; "
                "use Trace_ELBO(), TraceMeanField_ELBO() or TraceGraph_ELBO(), or train it in a "
                "loop of your own with pyro.infer.SVI and pv.minibatch"
            )

    def kl_weight(self, epoch: float) -> float:
        """Rises linearly to 1 during the warm-up; `epoch` counts from 0 and may be a fraction."""
        return 1.0 if self.warmup == 0 else min(1.0, epoch / self.warmup)


class _WeighKL(Messenger):
    """Scales the latent sites of model and guide, which is their KL term."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and not site_is_subsample(msg):
            msg["scale"] = msg["scale"] * self.weight


class _Epoch(NamedTuple):
    """One row of the history."""

    epoch: int
    elbo: float
    validation_elbo: float
    validation_error: float
    kl_weight: float
    learning_rate: float
    seconds: float


def fit(
    model: ProgramLike,
    guide: ProgramLike,
    data: Data,
    *,
    num_epochs: int = 50,
    batch_size: int = 128,
    objective: ELBO | None = None,
    optimizer: OptimizerFactory = adam,
    scheduler: SchedulerFactory | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    warmup: int = 0,
    per_batch: Callable[[Tensor], Tensor] | None = None,
    train_model: bool = True,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Fit:
    r"""Trains a model and a guide by stochastic variational inference.

    .. math:: \max_{\theta, \phi} \sum_n \mathbb{E}_{q_\phi(z \mid y_n)}
        \left[\log p_\theta(y_n, z) - \log q_\phi(z \mid y_n)\right]

    Parameters stay in their modules; Pyro's parameter store is not touched, the caller's random
    stream does not move, and the same seed gives the same result. Ctrl-C ends training after the
    current step and returns what there is.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The training tensor, or a tuple of them.
        num_epochs: Passes over the data.
        batch_size: Rows a step; the whole data set if there are fewer rows. The last batch of an
            epoch may be smaller, and counts by its rows.
        objective: A Pyro ELBO with a differentiable loss; `Trace_ELBO()` unless told otherwise.
        optimizer: Makes a torch optimizer from a list of tensors; Adam with 1e-3 by default, or
            e.g. `functools.partial(torch.optim.SGD, lr=0.1)`. A `LocalParameters` table brings
            its own.
        scheduler: Makes a torch scheduler from the optimizer; stepped once an epoch. By default
            :func:`hold_then_fall`; :func:`constant` leaves the step size alone.
        validation: Held-out data, whose ELBO a datum is computed after every epoch. For a
            `LocalParameters` guide free parameters are fitted to them with the model fixed.
        patience: Stops after so many epochs without a better validation ELBO, counted from the
            end of the warm-up.
        warmup: Epochs over which the weight of the KL term rises from 0 to 1. Reported numbers
            have full weight always.
        per_batch: Applied to the first tensor of each batch, on the run's random stream, such as
            `pv.data.Redrawn()`, which draws the binarization anew.
        train_model: Whether the model's parameters are trained, or only the guide's.
        seed: Seed of the run.
        device: Where to train; by default where the model is.
        progress: Whether to show a progress bar.

    Returns:
        The history and how training ended. With validation data the modules hold the best
        epoch's state, else the last one's.

    Raises:
        ValueError: If data, model and guide do not fit together, or an argument is out of range.
        FloatingPointError: If the loss or a gradient is not finite: names the step, the epoch,
            the batch, and the site or the parameter. The modules hold the last good state.

    References:
        | Automated Variational Inference in Probabilistic Programming (Wingate & Weber, 2013)
        | https://arxiv.org/abs/1301.1299
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae import Encoder, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> result = fit(model, guide, torch.randn(20, 3), num_epochs=2, progress=False)
        >>> result.history.epoch
        array([1, 2])
    """
    plan = _Plan(
        num_epochs, batch_size, objective or Trace_ELBO(), optimizer,
        scheduler or hold_then_fall(num_epochs),
        patience, warmup, per_batch, train_model, seed, progress,
    )  # fmt: skip
    for module in (part for program in (model, guide) for part in modules_of(program)):
        module.to(device)
    where = device_of(model, guide)
    batch, held_out = (
        as_batch(data, where),
        as_batch(validation, where) if validation is not None else None,
    )
    if patience is not None and held_out is None:
        raise ValueError("patience waits for the ELBO of held-out data: pass validation= too")
    for part in (batch, held_out):
        if part is not None:
            check_data(model, part)
    warn_constant_columns(batch[0])
    with _training(model, guide, train_model=train_model), forked_seed(seed):
        fixed = [] if train_model else _model_leaves(model, guide, batch)
        with _frozen(fixed):
            return _Training(model, guide, batch, held_out, plan).run()


def check_data(model: ProgramLike, batch: Batch) -> None:
    """Checks at the door: shapes, nan and inf, and the range that the likelihood asks for."""
    check_batch(*batch)
    check = getattr(model, "check", None)
    if check is not None:
        check(batch[0])


@contextmanager
def _training(model: ProgramLike, guide: ProgramLike, *, train_model: bool) -> Iterator[None]:
    """Runs programs in training mode, with parameters in modules; restores every mode."""
    with evaluating(model, guide):  # notes every mode, and restores it
        for program in (model, guide) if train_model else (guide,):
            for module in modules_of(program):
                module.train()
        yield


@contextmanager
def _frozen(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Keeps gradients from some leaves."""
    frozen = [tensor for tensor in tensors if tensor.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad = False
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad = True


class _Training:
    """A run of training: its tensors, its optimizer, and its records."""

    def __init__(
        self,
        model: ProgramLike,
        guide: ProgramLike,
        batch: Batch,
        held_out: Batch | None,
        plan: _Plan,
    ) -> None:
        self.model, self.guide, self.batch, self.plan = model, guide, batch, plan
        self.num_data = len(batch[0])
        self.batch_size = min(plan.batch_size, self.num_data)
        self.held_out = None if held_out is None else _HeldOut(model, guide, held_out, plan.seed)
        if isinstance(guide, Guide):
            guide.map.remember(*batch)
        self.tensors = self._find_tensors()
        # Where rows of a table are all there is to train, the schedule still needs an optimizer.
        nothing = [torch.zeros(0, requires_grad=True)]
        self.optimizer = plan.optimizer(list(self.tensors.values()) or nothing)
        self.first_rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler = plan.scheduler(self.optimizer)
        self.epochs: list[_Epoch] = []
        self.best: tuple[float, int, _State | None] = (-np.inf, 0, None)
        self.steps = 0

    def run(self) -> Fit:
        stopped, self.start = "finished", time.perf_counter()
        bar = tqdm(
            range(self.plan.num_epochs), desc="fit", unit=" epoch", disable=not self.plan.progress
        )
        try:
            for epoch in bar:
                self.epochs.append(self._epoch(epoch))
                bar.set_postfix_str(self._postfix())
                if self._should_stop(epoch):
                    stopped = "early"
                    break
        except KeyboardInterrupt:
            stopped = "interrupted"
        finally:
            bar.close()
        return self._finish(stopped)

    def _finish(self, stopped: str) -> Fit:
        """Puts the best state back and makes the arrays."""
        _, best_epoch, state = self.best
        if state is not None:
            state.restore()
        columns = list(zip(*self.epochs, strict=True)) or [()] * len(_Epoch._fields)
        history = History(*(np.array(column) for column in columns))
        kept = best_epoch if state is not None else len(self.epochs)
        return Fit(history, stopped, kept, self.plan.seed, tuple(self.tensors))

    def _epoch(self, epoch: int) -> _Epoch:
        order = torch.randperm(self.num_data)
        total, weight, batches = 0.0, 1.0, order.split(self.batch_size)
        for index, rows in enumerate(batches):
            weight = self.plan.kl_weight(epoch + index / len(batches))
            total += self._step(epoch, rows, weight) * len(rows)
        rate = self.optimizer.param_groups[0]["lr"]
        self._schedule()
        held_out = self._validate(epoch)
        seconds = time.perf_counter() - self.start
        value, error = float(held_out.value), float(held_out.error)
        return _Epoch(epoch + 1, total / self.num_data, value, error, weight, rate, seconds)

    def _schedule(self) -> None:
        """Moves to the next epoch's step size; the rows of a table follow."""
        self.scheduler.step()
        if isinstance(self.guide, Guide) and self.first_rate > 0:
            rate = self.optimizer.param_groups[0]["lr"]
            self.guide.map.scale_steps(rate / self.first_rate)

    def _step(self, epoch: int, rows: Tensor, weight: float) -> float:
        """One step; returns the ELBO of the batch in nats a datum, at full KL weight."""
        batch = self._take(rows)
        with minibatch(rows, self.num_data):
            with _WeighKL(weight):
                loss = self.plan.objective.differentiable_loss(self.model, self.guide, *batch)
            loss = loss / self.num_data
            where = f"step {self.steps + 1} (epoch {epoch + 1}, rows {_some(rows)})"
            if not bool(torch.isfinite(loss)):
                raise FloatingPointError(self._blame(loss.item(), where, batch))
            # A smaller last batch counts by its rows: every datum has the same weight in an epoch.
            self._descend(loss * (len(rows) / self.batch_size), where)
            self.steps += 1
            return -loss.item() if weight == 1 else self._plain_elbo(batch)

    def _take(self, rows: Tensor) -> Batch:
        first, *others = (part[rows.to(part.device)] for part in self.batch)
        return (self.plan.per_batch(first) if self.plan.per_batch else first, *others)

    def _descend(self, loss: Tensor, where: str) -> None:
        for tensor in self.tensors.values():
            tensor.grad = None
        try:
            loss.backward()
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}, at {where}; nothing else was changed") from error
        for name, tensor in self.tensors.items():
            if tensor.grad is not None and not bool(torch.isfinite(tensor.grad).all()):
                raise FloatingPointError(
                    f"the gradient of parameter '{name}' is not finite at {where}; the "
                    "parameters are those before this step. Try a smaller step size, or look at "
                    "these rows"
                )
        self.optimizer.step()

    def _plain_elbo(self, batch: Batch) -> float:
        with torch.no_grad():
            return float(-Trace_ELBO().loss(self.model, self.guide, *batch) / self.num_data)

    def _blame(self, loss: float, where: str, batch: Batch) -> str:
        """Says where a loss that is not finite came from."""
        bad = [name for name, tensor in self.tensors.items() if not bool(tensor.isfinite().all())]
        if bad:
            return f"the loss is {loss} at {where}: parameter '{bad[0]}' is not finite"
        with evaluating(self.model, self.guide), torch.no_grad():
            program = program_of(self.model, self.guide, batch)
            posterior = posterior_of(self.guide, program, batch)
            z, log_guide = posterior.draw(1)
            parts = {"the guide's": log_guide[0]}
            parts["the prior's"], parts["the likelihood's"] = (
                part[0] for part in program.log_densities(z, *batch)
            )
        for name, part in parts.items():
            rows = (~part.isfinite()).nonzero().flatten().tolist()
            if rows:
                return (
                    f"the loss is {loss} at {where}: {name} log density is {float(part[rows[0]])} "
                    f"for {len(rows)} rows of the batch, the first at position {rows[0]}; the "
                    "parameters are those before this step"
                )
        return f"the loss is {loss} at {where}; the parameters are those before this step"

    def _validate(self, epoch: int) -> Estimate:
        """Validation ELBO; keeps the state if it is the best one since the warm-up."""
        if self.held_out is None:
            return Estimate(torch.tensor(torch.nan), torch.tensor(torch.nan))
        result = self.held_out.elbo()
        if epoch + 1 > self.plan.warmup and float(result.value) > self.best[0]:
            state = _State.of(self.model, self.guide, self.tensors.values())
            self.best = (float(result.value), epoch + 1, state)
        return result

    def _should_stop(self, epoch: int) -> bool:
        if self.plan.patience is None or epoch + 1 <= self.plan.warmup:
            return False
        return epoch + 1 - self.best[1] >= self.plan.patience

    def _postfix(self) -> str:
        last = self.epochs[-1]
        text = f"ELBO {last.elbo:.2f} nats a datum"
        return (
            text
            if np.isnan(last.validation_elbo)
            else f"{text}, validation {last.validation_elbo:.2f}"
        )

    def _find_tensors(self) -> dict[str, Tensor]:
        """Everything that training moves, by name: the leaves of the loss's graph."""
        rows = torch.arange(min(2, self.num_data))  # two rows are enough to see the graph
        batch = self._take(rows)
        with minibatch(rows, self.num_data), forked_seed(self.plan.seed):
            loss = self.plan.objective.differentiable_loss(self.model, self.guide, *batch)
            leaves = _leaves(loss)
        own = getattr(self.guide, "map", None)
        free = [leaf for leaf in leaves if own is None or not own.owns(leaf)]
        if not free and len(free) == len(leaves):
            raise ValueError(
                "nothing to train: no tensor with requires_grad takes part in the loss"
            )
        return _named(free, self.model, self.guide)


class _HeldOut:
    """Validation data, and what a guide that is tied to rows has fitted to them so far."""

    def __init__(self, model: ProgramLike, guide: ProgramLike, batch: Batch, seed: int) -> None:
        self.model, self.guide, self.batch, self.seed = model, guide, batch, seed

    def elbo(self) -> Estimate:
        """Mean ELBO in nats a datum; the same draws every epoch, so that epochs compare."""
        guide = self.guide
        if isinstance(guide, Guide) and guide.map.per_row:
            # A rough fit: it is made anew every epoch, for a curve.
            guide = guide.fit_rows(self.batch, FitRows(lr_end=0.02), seed=self.seed)
        bound = evidence.elbo(self.model, guide, self.batch, _VALIDATION_DRAWS, seed=self.seed)
        return bound.mean


@dataclass(frozen=True)
class _State:
    """A copy of everything that training changes."""

    modules: list[tuple[nn.Module, dict[str, Tensor]]]
    loose: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, model: ProgramLike, guide: ProgramLike, tensors: Iterable[Tensor]) -> "_State":
        modules = [*modules_of(model), *modules_of(guide)]
        states = [
            (module, {name: value.clone() for name, value in module.state_dict().items()})
            for module in modules
        ]
        return cls(states, [(tensor, tensor.detach().clone()) for tensor in tensors])

    @torch.no_grad()
    def restore(self) -> None:
        """Puts everything back."""
        for module, state in self.modules:
            module.load_state_dict(state)
        for tensor, value in self.loose:
            tensor.copy_(value)


def _leaves(loss: Tensor) -> set[Tensor]:
    """Leaf tensors that a loss depends on and that want a gradient."""
    found: set[Tensor] = set()
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def _model_leaves(model: ProgramLike, guide: ProgramLike, batch: Batch) -> set[Tensor]:
    """Leaf tensors that the model's density depends on: its parameters."""
    row = tuple(part[:1] for part in batch)
    program = program_of(model, guide, row)
    z = torch.zeros(1, 1, program.latents, dtype=program.dtype, device=row[0].device)
    return _leaves(program.log_joint(z, *row).sum())


def _named(leaves: list[Tensor], model: ProgramLike, guide: ProgramLike) -> dict[str, Tensor]:
    """Names tensors by the modules that registered them, in the order of registration."""
    registered: dict[Tensor, str] = {
        parameter: f"{role}.{name}"
        for role, program in (("guide", guide), ("model", model))
        for module in modules_of(program)
        for name, parameter in module.named_parameters()
    }
    wanted = set(leaves)
    named = {name: parameter for parameter, name in registered.items() if parameter in wanted}
    loose = [leaf for leaf in leaves if leaf not in registered]
    for index, leaf in enumerate(sorted(loose, key=lambda leaf: tuple(leaf.shape))):
        named[f"unregistered tensor {index} of shape {tuple(leaf.shape)}"] = leaf
    return named


def _some(rows: Tensor) -> str:
    shown = ", ".join(str(row) for row in rows[:5].tolist())
    return f"[{shown}]" if len(rows) <= 5 else f"[{shown}, ... {len(rows)} in all]"
