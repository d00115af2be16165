r"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches.

Each step draws a batch of :math:`B` rows, estimates the loss of the whole data set from it
(every site in the plate over data scaled by :math:`N / B`), and takes a step of a torch optimizer
on all leaves of the loss's autograd graph, so nothing is left untrained because nobody
registered it. What is reported is the ELBO a datum, at full KL weight, whatever is optimized.
A batch may come from several shards of the data, and shards from several processes: see
`sharding`.
"""

import time
import warnings
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from .. import distributed, evidence, stats
from .._types import Batch, Data, Estimate, ProgramLike
from ..compiling import CompiledSteps
from ..data import Augmented, RowReader
from ..data.streams import augmentation_of
from ..evidence import check_data
from ..guides import (
    FitRows,
    for_new_rows,
    is_tied_to_rows,
    maps_of,
    prepare_training,
    program_of,
    require_new_rows,
    row_buffers,
)
from ..objectives import Objective, Progress
from ..programs import (
    as_batch,
    capturing,
    device_of,
    evaluating,
    leaves_of,
    minibatch,
    modules_of,
    run,
)
from ..progress import progress_bar
from ..randomness import forked
from .optimizers import (
    NoteScales,
    OptimizerFactory,
    SchedulerFactory,
    Unscaled,
    adam,
    hold_then_fall,
    objective_of,
)
from .plans import Plan
from .products import Products
from .results import Fit, History
from .rows import InMemory, check_rows, head, read_ahead, reader_of, share_missing
from .sharding import Part, Shards, refuse_running_averages, start_equal
from .tensors import (
    Parts,
    State,
    add_to_gradients,
    frozen,
    named,
    parts_of,
    require_finite,
)

_VALIDATION_DRAWS = 10  # the error over data is larger than that of ten draws a datum


class _Epoch(NamedTuple):
    """One row of the history."""

    epoch: int
    elbo: float
    validation_elbo: float
    validation_error: float
    kl_weight: float
    learning_rate: float
    seconds: float


def fit(  # noqa: PLR0913 (DESIGN.md has the list)
    model: ProgramLike,
    guide: ProgramLike,
    data: Data | RowReader | Augmented,
    *,
    num_epochs: int = 50,
    batch_size: int = 64,
    objective: ELBO | None = None,
    optimizer: OptimizerFactory = adam,
    scheduler: SchedulerFactory | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    train_model: bool = True,
    compile: bool | None = None,
    precision: Products | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> Fit:
    r"""Trains a model and a guide by stochastic variational inference.

    .. math:: \max_{\theta, \phi} \sum_n \mathbb{E}_{q_\phi(z \mid y_n)}
        \left[\log p_\theta(y_n, z) - \log q_\phi(z \mid y_n)\right]

    Parameters stay in their modules; Pyro's parameter store is not touched, the caller's random
    stream does not move, and the same seed gives the same result. Ctrl-C ends training after the
    current step and returns what there is; one of several processes it ends with the rest.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The training tensor, or a tuple of them; or rows that are read when they are
            needed, as :class:`pyro_vae.data.OnDisk` and memory-mapped arrays are. Under
            torch.distributed each process is given its own rows, as
            :func:`pyro_vae.distributed.share` cuts them, and validation data likewise.
            :class:`pyro_vae.data.Augmented` changes every batch, as by a new binarization.
        num_epochs: Passes over the data.
        batch_size: Rows a step; the whole data set if there are fewer rows. The last batch of an
            epoch may be smaller, and counts by its rows.
        objective: A Pyro ELBO with a differentiable loss, or one of :mod:`pyro_vae.objectives`;
            `Trace_ELBO()` unless told otherwise, and `TraceEnum_ELBO` where the program has
            discrete latent sites, which it sums out. A warm-up of the KL term is its schedule,
            `pv.BetaELBO(pv.objectives.LinearWarmup(10))`; reported numbers have full weight always.
        optimizer: Makes a torch optimizer from a list of tensors; Adam with 2e-3 by default, or
            e.g. `functools.partial(torch.optim.SGD, lr=0.1)`. A `LocalParameters` table brings
            its own.
        scheduler: Makes a torch scheduler from the optimizer; stepped once an epoch. By default
            :func:`hold_then_fall`; :func:`constant` leaves the step size alone.
        validation: Held-out data, whose ELBO a datum is computed after every epoch. For a
            `LocalParameters` guide free parameters are fitted to them with the model fixed.
        patience: Stops after so many epochs without a better validation ELBO, counted from the
            end of the objective's schedule.
        train_model: Whether the model's parameters are trained, or only the guide's.
        compile: Whether whole steps are compiled, programs, gradient, optimizer and all, which
            takes half a minute at first and then a fraction of a step's time. By default where
            that pays. What cannot be compiled runs eagerly, and the result says why. A
            program that keeps count of its calls, outside of tensors, needs `compile=False`.
        precision: :class:`BFloat16Products` or :class:`TF32Products`, for hardware that is faster
            so. Gradients are then those of a slightly other ELBO; by how much it differs is
            measured at the end, on the same draws (`Fit.rounding`). Validation is in full
            precision.
        seed: Seed of the run.
        device: Where to train; by default where the model is.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The history and how training ended. With validation data the modules hold the best
        epoch's state, else the last one's.

    Raises:
        ValueError: If data, model and guide do not fit together, or an argument is out of range.
        FloatingPointError: If the loss or a gradient is not finite: names the step, the epoch,
            the batch, and the site or the parameter. The modules hold the last good state; of
            rows with parameters of their own, some shards' may be a step ahead.
        RuntimeError: If another process failed, and how.

    References:
        | Automated Variational Inference in Probabilistic Programming (Wingate & Weber, 2013)
        | https://arxiv.org/abs/1301.1299
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114

    Example:
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> result = fit(model, guide, torch.randn(20, 3), num_epochs=2, progress=False)
        >>> result.history.epoch
        array([1, 2])
    """
    plan = Plan(
        num_epochs, batch_size, objective, optimizer,
        scheduler or hold_then_fall(num_epochs),
        patience, train_model, seed, progress, compile, precision,
    )  # fmt: skip
    for module in (part for program in (model, guide) for part in modules_of(program)):
        module.to(device)
    where = device_of(model, guide)
    stored, augmented = augmentation_of(data)
    with distributed.together():
        reader = reader_of(stored, where)
        held_out = None if validation is None else as_batch(validation, where)
        if patience is not None and held_out is None:
            raise ValueError("patience waits for the ELBO of held-out data: pass validation= too")
        missing = check_rows(model, guide, reader)
        if held_out is not None:
            check_data(model, held_out)
            if isinstance(reader, InMemory):
                require_new_rows(model, guide, reader.batch)
    distributed.require_same("what fit is told", plan.told(held_out))
    cut = Shards.of(len(reader), seed)
    refuse_running_averages(cut.count, model, guide)
    with _training(model, guide, train_model=train_model), forked(seed, "fit"):
        fixed = Parts() if train_model else parts_of(model, guide, head(reader))
        with frozen(fixed):
            with distributed.together():
                training = _Training(model, guide, reader, augmented, held_out, plan, cut)
            start_equal(model, guide, training.tensors)
            result = training.run()
    return replace(result, missing=share_missing(distributed.total(missing)))


@contextmanager
def _training(model: ProgramLike, guide: ProgramLike, *, train_model: bool) -> Iterator[None]:
    """Runs programs in training mode, with parameters in modules; restores every mode."""
    with evaluating(model, guide), warnings.catch_warnings():  # notes every mode, restores it
        # Pyro only warns of these; here they are errors, which name the row and the step.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf)", UserWarning)
        for program in (model, guide) if train_model else (guide,):
            for module in modules_of(program):
                module.train()
        yield


class _Training:
    """A run of training: its tensors, its optimizer, and its records."""

    def __init__(
        self,
        model: ProgramLike,
        guide: ProgramLike,
        reader: RowReader,
        augmented: Augmented | None,
        held_out: Batch | None,
        plan: Plan,
        shards: Shards,
    ) -> None:
        self.model, self.guide, self.reader, self.plan = model, guide, reader, plan
        self.augmented, self.shards, self.num_data = augmented, shards, shards.num_data
        with pyro.validation_enabled(is_validate=False):  # the first step says what is nan
            self.program = program_of(model, guide, head(reader))
        self.asked = objective_of(plan.objective, self.program)
        own = isinstance(self.asked, Objective)  # it sums discrete sites out by itself
        self.objective = self.asked.at(0.0) if own else self.asked
        self.enumerated = model if own else self.program.enumerating(model)
        self.batch_size = min(plan.batch_size, self.num_data)
        self.held_out = None if held_out is None else _HeldOut(model, guide, held_out, plan.seed)
        self.in_order = isinstance(reader, InMemory) and prepare_training(
            self.program, guide, reader.batch, self.batch_size // shards.count
        )
        self.tensors = self._find_tensors()
        # Where rows of a table are all there is to train, the schedule still needs an optimizer.
        nothing = [torch.zeros(0, requires_grad=True)]
        self.optimizer = plan.optimizer(list(self.tensors.values()) or nothing)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise TypeError(
                "optimizer= makes a torch optimizer from a list of tensors, as "
                "functools.partial(torch.optim.Adam, lr=1e-3) does; got something that made a "
                f"{type(self.optimizer).__name__}"
            )
        self.compiled = CompiledSteps(
            self._captured_loss,
            list(self.tensors.values()),
            self.optimizer,
            compile=plan.compile,
        )
        if is_tied_to_rows(guide):
            self.compiled.reason = "the rows of a table move by themselves"
        self.first_rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler = plan.scheduler(self.optimizer)
        self.epochs: list[_Epoch] = []
        self.best: tuple[float, int, State | None] = (-np.inf, 0, None)
        self.steps = 0

    def run(self) -> Fit:
        """Trains, epoch by epoch, until it is finished or stopped."""
        stopped, self.start = "finished", time.perf_counter()
        bar = progress_bar(
            range(self.plan.num_epochs),
            show=self.plan.progress if distributed.rank() == 0 else False,
            desc="fit",
            unit=" epoch",
        )
        # Hooks, not a look at the gradients afterwards: backward() itself moves a table's rows,
        # which lie upstream of whatever is trained here.
        hooks = [
            tensor.register_hook(partial(require_finite, name))
            for name, tensor in self.tensors.items()
        ]
        try:
            self._follow_schedule()
            for epoch in bar:
                self.epochs.append(self._epoch(epoch))
                bar.set_postfix_str(self._postfix())
                if self._should_stop(epoch):
                    stopped = "early"
                    break
        except KeyboardInterrupt:
            if distributed.size() > 1:  # the others may be anywhere: nothing that all have is left
                raise
            stopped = "interrupted"
        finally:
            bar.close()
            for hook in hooks:
                hook.remove()
            self._forget_gradients()
            for map in maps_of(self.guide):
                map.scale_steps(1.0)  # a loop of the user's own may follow
        return self._finish(stopped)

    def _finish(self, stopped: str) -> Fit:
        """Puts the best state back and makes the arrays."""
        _, best_epoch, state = self.best
        if state is not None:
            state.restore()
        columns = list(zip(*self.epochs, strict=True)) or [()] * len(_Epoch._fields)
        history = History(*(np.array(column) for column in columns))
        kept = best_epoch if state is not None else len(self.epochs)
        return Fit(
            history, stopped, kept, self.plan.seed, tuple(self.tensors), self.compiled.verdict,
            rounding=self._rounding(),
        )  # fmt: skip

    def _rounding(self) -> Estimate | None:
        """By how much fewer bits move the ELBO of the first rows, nats a datum, from same draws."""
        if self.plan.precision is None:
            return None
        rows = torch.arange(min(self.batch_size, len(self.reader)))
        batch, moved = self._augmented(self.reader.read(rows)), []
        still = State.of(self.model, self.guide, (), still=row_buffers(self.guide))
        with torch.no_grad():
            for _ in range(_VALIDATION_DRAWS):
                draws = torch.get_rng_state()
                full = self._captured_loss(*batch)[1]
                torch.set_rng_state(draws)
                with self.plan.rounded():
                    moved.append(self._captured_loss(*batch)[1] - full)
        still.restore()
        return stats.mean_estimate(torch.stack(moved).double())

    def _epoch(self, epoch: int) -> _Epoch:
        total, weight, steps = 0.0, 1.0, self.shards.epoch(self.batch_size)
        with closing(self._batches(steps)) as batches, self.plan.rounded():
            for index, parts in enumerate(steps):
                weight = self._weight(epoch + index / len(steps))
                total += self._step(epoch, parts, batches)
        rate = self.optimizer.param_groups[0]["lr"]
        self.scheduler.step()
        self._follow_schedule()
        held_out = self._validate(epoch)
        seconds = time.perf_counter() - self.start
        value, error = float(held_out.value), float(held_out.error)
        return _Epoch(epoch + 1, total / self.num_data, value, error, weight, rate, seconds)

    def _weight(self, epoch: float) -> float:
        """The weight of the KL term now; an objective of ours follows its own schedule."""
        if isinstance(self.asked, Objective):
            self.objective = self.asked.at(epoch)
            return self.objective.kl_weight
        return 1.0

    def _follow_schedule(self) -> None:
        """The rows of a table follow the schedule of the rest."""
        rate = self.optimizer.param_groups[0]["lr"]
        for map in maps_of(self.guide) if self.first_rate > 0 else ():
            map.scale_steps(rate / self.first_rate)

    def _batches(self, steps: list[list[Part]]) -> Generator[Batch, None, None]:
        """The batch of every part, in turn."""
        for batch in read_ahead(self.reader, (part.rows for parts in steps for part in parts)):
            yield self._augmented(batch)

    def _step(self, epoch: int, parts: list[Part], batches: Iterator[Batch]) -> float:
        """One step; returns the sum of its data's ELBOs in nats, at full KL weight."""
        if self.shards.count == 1:
            batch, rows = next(batches), parts[0].rows
            if self._is_settled():
                elbo_now = self.compiled.step(batch, self._steps_left(epoch, parts[0]))
                if elbo_now is not None:
                    self.steps += 1
                    return elbo_now * len(rows)
            batches = iter([batch])
        self._forget_gradients()
        with distributed.together():
            elbos = [self._backward(epoch, part, batches) for part in parts]
        elbo = self.shards.add_up(sum(elbos, 0.0), self.tensors.values())
        self._move(self._where(epoch, parts))
        self.steps += 1
        return elbo

    def _backward(self, epoch: int, part: Part, batches: Iterator[Batch]) -> float:
        """Adds the gradient of a shard's part of a step; returns the sum of its ELBOs."""
        rows, where = part.rows, self._where(epoch, [part])
        with part.shard.used():
            batch = next(batches)
            if self.shards.count > 1 and self._is_settled():
                found = self.compiled.gradients(batch, self._steps_left(epoch, part))
                if found is not None:
                    add_to_gradients(self.tensors.values(), found[1])
                    return found[0] * len(rows)
            with (
                self.compiled.counted(),
                minibatch(rows, self.num_data, plate=self.program.plate),
            ):
                loss, elbo = self._loss(batch, rows, where)
                # A part of a step counts by its rows: a datum has the same weight in all of them.
                with _naming(where):
                    (loss * (len(rows) / self.batch_size)).backward()
        return elbo.item() * len(rows)

    def _where(self, epoch: int, parts: list[Part]) -> str:
        rows = torch.cat([part.rows for part in parts] or [torch.arange(0)])
        return f"step {self.steps + 1} (epoch {epoch + 1}, rows {_some(rows)})"

    def _is_settled(self) -> bool:
        """Whether the objective is the one of every step to come, which a compiled step needs."""
        if not isinstance(self.asked, Objective):
            return True
        return bool(self.objective == self.asked.at(self.plan.num_epochs))

    def _steps_left(self, epoch: int, part: Part) -> int:
        """How many batches of this size are still to come."""
        size = self.batch_size * part.shard.size // self.num_data
        full = part.shard.size // size if len(part.rows) == size else 1
        return (self.plan.num_epochs - epoch) * full

    def _captured_loss(self, *batch: Tensor) -> tuple[Tensor, Tensor]:
        """What a compiled step minimizes, and the ELBO, in nats a datum."""
        size = len(batch[0])
        # Whoever asks which rows these are cannot be captured: such a tensor has no values.
        rows = torch.arange(size, device="meta" if capturing() else None)
        with minibatch(rows, self.num_data, plate=self.program.plate):
            loss, elbo = self._progress(batch)
        return loss / self.num_data * (size / self.batch_size), elbo / self.num_data

    def _progress(self, batch: Batch) -> Progress:
        """What is minimized, and the ELBO, in nats over the data set.

        The ELBO has full weight, and no scale of the program's own, whatever is minimized.
        """
        if isinstance(self.objective, Objective):
            return self.objective.progress(self.model, self.guide, *batch)
        with NoteScales() as scales:
            loss = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        if not scales.found:
            return Progress(loss, -loss.detach())
        self.compiled.reason = "poutine.scale in a program may change from step to step"
        with torch.no_grad(), Unscaled():
            full = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        return Progress(loss, -full)

    def _loss(self, batch: Batch, rows: Tensor, where: str) -> Progress:
        """The same, in nats a datum; what is not finite is traced to its source."""
        draws, refused = torch.get_rng_state(), None
        try:
            loss, elbo = self._progress(batch)
        except ValueError as error:  # a distribution refuses parameters that are nan
            loss, elbo, refused = torch.tensor(torch.nan), torch.tensor(torch.nan), error
        if bool(torch.isfinite(loss + elbo)):
            return Progress(loss / self.num_data, elbo / self.num_data)
        torch.set_rng_state(draws)  # the same draws once more
        culprit = self._culprit(batch, rows)
        if culprit is None and refused is not None:
            raise refused
        raise FloatingPointError(
            f"the loss is {loss.item()} at {where}{culprit or ''}; the parameters are those before "
            "this step. Try a smaller step size, or look at these rows"
        ) from refused

    def _augmented(self, batch: Batch) -> Batch:
        return batch if self.augmented is None else self.augmented.change(batch)

    def _move(self, where: str) -> None:
        """A step of the optimizer, or none at all."""
        before = [tensor.detach().clone() for tensor in self.tensors.values()]
        try:
            with _naming(where):
                self.optimizer.step()
                for name, tensor in self.tensors.items():
                    require_finite(name, tensor, kind="new value")
        except FloatingPointError:
            for tensor, value in zip(self.tensors.values(), before, strict=True):
                tensor.data.copy_(value)
            raise

    def _forget_gradients(self) -> None:
        for tensor in self.tensors.values():
            tensor.grad = None

    def _culprit(self, batch: Batch, rows: Tensor) -> str | None:
        """The parameter that is not finite, or the site whose log density is not, and its rows."""
        for name, tensor in self.tensors.items():
            if not bool(tensor.isfinite().all()):
                return f": parameter '{name}' is not finite"
        with torch.no_grad(), pyro.validation_enabled(is_validate=False):
            guide = run(self.guide, batch)
            model = run(poutine.replay(self.model, trace=guide.trace), batch)
            for role, sites in (("guide", guide.sites), ("model", model.sites)):
                for name, site in sites.items():
                    log_prob = site.log_prob_by_datum(self.program.plate_dim)
                    bad = (~log_prob.isfinite()).cpu()
                    if bool(bad.any()):  # a site that all data share has no rows
                        which = f" for rows {_some(rows[bad])}" if bad.shape == rows.shape else ""
                        return (
                            f": site '{name}' of the {role} has a log density that is not finite"
                            f"{which}"
                        )
        return None

    def _validate(self, epoch: int) -> Estimate:
        """Validation ELBO; keeps the state if it is the best one since the warm-up."""
        if self.held_out is None:
            return Estimate(torch.tensor(torch.nan), torch.tensor(torch.nan))
        try:
            with distributed.together():
                bound = self.held_out.elbo()
            result = distributed.gather(bound).mean
        except FloatingPointError as error:
            _, best_epoch, state = self.best
            if state is not None:
                state.restore()
            kept = "training stopped at" if state is None else f"epoch {best_epoch} had, the best"
            raise FloatingPointError(
                f"after epoch {epoch + 1}, on the validation data: {error}. The modules hold what "
                f"{kept}; try a smaller step size"
            ) from error
        if epoch + 1 > self.plan.warmup and float(result.value) > self.best[0]:
            state = State.of(self.model, self.guide, self.tensors.values())
            self.best = (float(result.value), epoch + 1, state)
        return result

    def _should_stop(self, epoch: int) -> bool:
        if self.plan.patience is None or epoch + 1 <= self.plan.warmup:
            return False
        return epoch + 1 - max(self.best[1], self.plan.warmup) >= self.plan.patience

    def _postfix(self) -> str:
        last = self.epochs[-1]
        held_out = "" if self.held_out is None else f", validation {last.validation_elbo:.2f}"
        return f"ELBO {last.elbo:.2f} nats a datum{held_out}"

    def _find_tensors(self) -> dict[str, Tensor]:
        """Everything that training moves, by name: the leaves of the loss's graph."""
        # A guide that is tied to its rows is called with all of them.
        first = self.reader.read(torch.arange(self.num_data)) if self.in_order else None
        batch = self._augmented(first or head(self.reader))
        rows = torch.arange(len(batch[0]))
        # Running means of a BatchNorm may move; a table of rows does not without a gradient.
        buffers = State.of(self.model, self.guide, (), still=row_buffers(self.guide))
        with (
            minibatch(rows, self.num_data, plate=self.program.plate),
            forked(self.plan.seed, "fit.tensors"),
            pyro.validation_enabled(is_validate=False),  # the first step says what is nan
        ):
            leaves = self._leaves(batch)
        buffers.restore()
        maps = maps_of(self.guide)
        free = [leaf for leaf in leaves if not any(map.owns(leaf) for map in maps)]
        if not free and len(free) == len(leaves):
            raise ValueError(
                "nothing to train: no tensor with requires_grad takes part in the loss; name what "
                "is to be learnt in pyro.param, or make it an nn.Parameter of a module that the "
                "model or the guide uses. Without, pv.log_marginal_likelihood needs no training"
            )
        return named(free, self.model, self.guide)

    def _leaves(self, batch: Batch) -> list[Tensor]:
        """Leaves of the loss's graph."""
        try:
            loss = self.objective.differentiable_loss(self.enumerated, self.guide, *batch)
        except ValueError as error:
            if "cannot be differentiated" in str(error):  # so says Pyro of a loss without leaves
                return []
            raise
        return list(leaves_of(loss))


class _HeldOut:
    """Validation data, and what a guide that is tied to rows has fitted to them so far."""

    def __init__(self, model: ProgramLike, guide: ProgramLike, batch: Batch, seed: int) -> None:
        self.model, self.guide, self.batch, self.seed = model, guide, batch, seed

    def elbo(self) -> evidence.EvidenceLowerBound:
        """The ELBO of every datum; the same draws every epoch, so that epochs compare."""
        rough = FitRows(tolerance=0.01)  # it is made anew every epoch, for a curve
        guide = for_new_rows(self.guide, self.batch, rough, seed=self.seed, progress=False)
        return evidence.elbo(
            self.model, guide, self.batch, _VALIDATION_DRAWS, seed=self.seed, progress=False
        )


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Says where a number was not finite."""
    try:
        yield
    except FloatingPointError as error:
        raise FloatingPointError(
            f"{error}, at {where}; the parameters are those before this step. Try a smaller step "
            "size, or look at these rows"
        ) from error


def _some(rows: Tensor) -> str:
    shown = ", ".join(str(row) for row in rows[:5].tolist())
    return f"[{shown}]" if len(rows) <= 5 else f"[{shown}, ... {len(rows)} in all]"
