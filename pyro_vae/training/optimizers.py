"""Objectives, optimizers and schedules of training."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.optim.optim import PyroOptim
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from .._types import Batch, ProgramLike
from ..formatting import count_of
from ..guides.entry import model_for, samples_discrete
from ..guides.sites import WithPoints
from ..objectives import BetaELBO, Objective
from ..programs import Program
from ..programs.copies import no_new_parameters
from ..programs.modes import import_compiler
from ..programs.plates import batch_scale
from ..randomness import undisturbed

OptimizerFactory = Callable[[list[Tensor]], torch.optim.Optimizer]
SchedulerFactory = Callable[[torch.optim.Optimizer], Any]


def adam(parameters: list[Tensor], lr: float = 2e-3) -> torch.optim.Optimizer:
    r"""Makes the default optimizer, Adam with :math:`\beta_2 = 0.99`.

    Adam divides each step by the root of a running average of squared gradients, in which a
    gradient from :math:`s` steps ago has the weight :math:`\beta_2^s`. The first gradients of a VAE
    can be a thousand times as large as the later ones. With the :math:`\beta_2 = 0.999` of
    torch.optim.Adam these first gradients would keep the steps small for thousands of steps.

    Arguments:
        parameters: The tensors to train.
        lr: The step size.

    References:
        | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
        | https://arxiv.org/abs/1412.6980
    """
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99))


def adam_with(lr: float) -> OptimizerFactory:
    """Returns a function that makes the default optimizer with a given step size.

    Arguments:
        lr: The step size.
    """
    return partial(adam, lr=lr)


def clipped(optimizer: OptimizerFactory, max_norm: float) -> OptimizerFactory:
    r"""Makes a factory of optimizers that rescale a gradient :math:`g` of norm above `max_norm`.

    .. math:: g \min(1, \text{max\_norm} / \lVert g \rVert)

    Arguments:
        optimizer: Factory of the underlying optimizer.
        max_norm: Largest norm of the gradient of all tensors together, for the loss in nats per
            datum. Rows of a `LocalParameters` table are not included.

    Returns:
        A factory to pass to :func:`fit` as `optimizer=`.

    References:
        | On the Difficulty of Training Recurrent Neural Networks (Pascanu et al., 2013)
        | https://arxiv.org/abs/1211.5063

    Example:
        >>> from functools import partial
        >>> parameter = torch.zeros(1, requires_grad=True)
        >>> optimizer = clipped(partial(torch.optim.SGD, lr=1.0), max_norm=0.5)([parameter])
        >>> parameter.grad = torch.tensor([-8.0])
        >>> optimizer.step()
        >>> round(parameter.item(), 3)
        0.5
    """
    if not max_norm > 0:
        raise ValueError(f"`max_norm` must be positive; got {max_norm}")

    def made(parameters: list[Tensor]) -> torch.optim.Optimizer:
        inner = made_optimizer(optimizer, parameters)

        def clip(*_: object) -> None:
            torch.nn.utils.clip_grad_norm_(parameters, max_norm)

        inner.register_step_pre_hook(clip)
        return inner

    return made


def made_optimizer(
    given: OptimizerFactory | torch.optim.Optimizer, tensors: list[Tensor]
) -> torch.optim.Optimizer:
    """Makes an optimizer for the tensors, from a class, a factory, or another optimizer's settings.

    Raises:
        TypeError: If the result is not a torch optimizer, or needs several losses per step (LBFGS).
        ValueError: If the optimizer cannot be made, has an invalid step size, or omits a tensor.
    """
    import_compiler()  # otherwise the first optimizer would import it
    if isinstance(given, torch.optim.Optimizer):
        return _alike(given, tensors)
    if isinstance(given, PyroOptim):
        raise TypeError(
            "`optimizer` must make a torch optimizer; got one of pyro.optim: pass "
            f"functools.partial({_like_pyros(given)})"
        )
    remedy = (
        "`optimizer` must take a list of tensors and return a torch optimizer, such as "
        "torch.optim.Adam or functools.partial(torch.optim.Adam, lr=1e-3)"
    )
    optimizer: torch.optim.Optimizer = _made(given, tensors, torch.optim.Optimizer, remedy)
    if isinstance(optimizer, torch.optim.LBFGS | torch.optim.SparseAdam):
        raise TypeError(
            f"`fit` cannot use {type(optimizer).__name__}, because `fit` computes the loss once "
            "per step, with dense gradients: use torch.optim.Adam"
        )
    require_step_sizes(optimizer, "optimizer=")
    return optimizer


def _made(factory: Callable[[Any], Any], given: Any, kind: type, remedy: str) -> Any:
    """Calls a user's factory; refuses a factory that fails, or whose result is not of `kind`."""
    try:
        made = factory(given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{remedy}; got {factory}, which fails: {error}") from error
    if not isinstance(made, kind):
        raise TypeError(f"{remedy}; got a function that made a {type(made).__name__}")
    return made


def _like_pyros(given: PyroOptim) -> str:
    """Names the torch optimizer that a Pyro optimizer wraps, and its step size if this is known.

    If torch has no optimizer with the name of the Pyro optimizer, the answer is Adam.
    """
    made: Any = given.pt_optim_constructor
    name, options = made.__name__, given.pt_optim_args
    size = f", lr={options['lr']!r}" if isinstance(options, dict) and "lr" in options else ""
    return f"torch.optim.{name if hasattr(torch.optim, name) else 'Adam'}{size}"


def _alike(made: torch.optim.Optimizer, tensors: list[Tensor]) -> torch.optim.Optimizer:
    """Makes an optimizer for `tensors` with the class, group settings and step hooks of `made`."""
    known = {tensor for group in made.param_groups for tensor in group["params"]}
    left = [tuple(tensor.shape) for tensor in tensors if tensor not in known]
    if left:
        raise ValueError(
            f"`optimizer` must have all tensors that are trained; got one that lacks {len(left)} "
            f"of {count_of(len(tensors), 'tensor')}, the first of shape {left[0]}: pass a factory, "
            f"as in optimizer=functools.partial(torch.optim.{type(made).__name__}, "
            f"lr={made.param_groups[0]['lr']}), or `train_model=False` to train only the guide"
        )
    wanted = set(tensors)
    groups = [
        {name: value for name, value in group.items() if name != "initial_lr"}
        | {"params": [tensor for tensor in group["params"] if tensor in wanted]}
        for group in made.param_groups
    ]
    kept = [group for group in groups if group["params"]]  # each group with all of its settings
    alike = made_optimizer(lambda _: type(made)(kept), tensors)  # type: ignore[call-arg]
    # Torch has no public access to hooks, such as the one that clips gradients.
    alike._optimizer_step_pre_hooks.update(made._optimizer_step_pre_hooks)  # noqa: SLF001
    alike._optimizer_step_post_hooks.update(made._optimizer_step_post_hooks)  # noqa: SLF001
    return alike


def require_step_sizes(optimizer: torch.optim.Optimizer, source: str) -> None:
    """Refuses a step size that is negative or not finite.

    Arguments:
        optimizer: The optimizer, with a step size for every group of parameters.
        source: The argument of `fit` that the step sizes come from.

    Raises:
        ValueError: If a step size is negative or not finite.
    """
    for rate in (float(group["lr"]) for group in optimizer.param_groups if "lr" in group):
        if not 0 <= rate < math.inf:
            raise ValueError(
                f"the step size of {source} must be a finite number of at least 0; got {rate}: set "
                "the step size, as in functools.partial(torch.optim.Adam, lr=1e-3)"
            )


@runtime_checkable
class _Steps(Protocol):
    def step(self) -> None: ...


class Scheduler:
    """A torch scheduler, stepped once per epoch.

    Arguments:
        factory: Makes the scheduler from the optimizer.
        optimizer: The optimizer.

    Raises:
        TypeError: If the factory does not make a scheduler.
    """

    def __init__(self, factory: SchedulerFactory, optimizer: torch.optim.Optimizer) -> None:
        remedy = (
            "`scheduler` must be a function that makes a torch scheduler from the optimizer, such "
            "as functools.partial(torch.optim.lr_scheduler.StepLR, step_size=10)"
        )
        self.torch = _made(factory, optimizer, _Steps, remedy)
        require_step_sizes(optimizer, "scheduler=")
        self.optimizer = optimizer

    def fall(self, epochs: int) -> int | None:
        """Starts the decay of the default schedule now; returns the new total number of epochs.

        For any other schedule, changes nothing and returns `None`.

        Arguments:
            epochs: Epochs so far; the decay takes the same number of epochs.
        """
        if not isinstance(self.torch, torch.optim.lr_scheduler.LambdaLR):
            return None
        factors: list[Any] = self.torch.lr_lambdas
        if not all(isinstance(factor, HoldThenFall) for factor in factors):
            return None
        for factor in factors:
            factor.num_epochs = min(factor.num_epochs, 2 * epochs)
        return int(factors[0].num_epochs)

    def step(self, elbo: float) -> None:
        """Advances the schedule by an epoch; a plateau scheduler is given `elbo`."""
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau
        if isinstance(self.torch, plateau):
            self.torch.step(elbo if self.torch.mode == "max" else -elbo)
        else:
            self._step()
        require_step_sizes(self.optimizer, "scheduler=")

    def _step(self) -> None:
        with warnings.catch_warnings():
            # After resuming at the end of an epoch, no step was taken in this process.
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
            try:
                self.torch.step()
            except ValueError as error:
                raise ValueError(
                    f"the scheduler is stepped once per epoch, but {type(self.torch).__name__} "
                    f"failed ({error}): set its number of steps to the number of epochs"
                ) from error


def constant(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LambdaLR:
    """A schedule that keeps the step size constant.

    Arguments:
        optimizer: The optimizer that takes the steps.
    """
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)


def hold_then_fall(num_epochs: int) -> SchedulerFactory:
    r"""The default schedule: constant for half of the epochs, then a cosine decay to zero.

    The first half makes progress. In the second half the parameters settle: at a constant step size
    they fluctuate with the noise of the gradient, which costs a fraction of a nat.

    Arguments:
        num_epochs: Number of epochs of the training run.

    References:
        | SGDR: Stochastic Gradient Descent with Warm Restarts (Loshchilov & Hutter, 2017)
        | https://arxiv.org/abs/1608.03983

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> hold_then_fall(4)(optimizer).lr_lambdas[0](3)
        0.5
    """
    return lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, HoldThenFall(num_epochs))


class HoldThenFall:
    """Computes the factor of the step size for :func:`hold_then_fall`.

    If `num_epochs` is lowered during training, the decay starts earlier.
    """

    def __init__(self, num_epochs: int) -> None:
        self.num_epochs = num_epochs

    def __call__(self, epoch: int) -> float:
        """Returns the factor at an epoch: 1 in the first half of training, then falling to 0."""
        progress = max(0.0, 2 * epoch / self.num_epochs - 1)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class NoteScales(Messenger):
    """Records whether a program scales any of its sites, as `poutine.scale` does.

    Attributes:
        found: Whether any site is scaled.
        largest: The largest scale of a site so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found, self.largest = False, 0.0

    def _pyro_sample(self, msg: Any) -> None:
        if not site_is_subsample(msg):
            scale = msg["scale"] / batch_scale(msg)
            self.found |= isinstance(scale, Tensor) or scale != 1
            most = scale.detach().max() if isinstance(scale, Tensor) else scale
            self.largest = max(self.largest, float(most))


class Unscaled(Messenger):
    """Removes the scales that a program sets for its sites, so that reported numbers are unscaled.

    The factor N / B of a mini-batch (rows of the data set over rows of the batch) is kept.
    """

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = batch_scale(msg)


class DrawnELBO(TraceEnum_ELBO):
    """An ELBO that draws the guide's discrete sites instead of enumerating their values.

    It is used if a network cannot broadcast over these values.
    """

    def differentiable_loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Any:
        """Computes minus the ELBO, with score-function gradients."""
        drawn: Any = {"enumerate": None}
        drawing = poutine.infer_config(guide, config_fn=lambda _: drawn)
        return super().differentiable_loss(model, drawing, *batch)


@dataclass(frozen=True)
class MeanField:
    """Pyro's mean-field ELBO, plus the log densities of a guide's `Delta` sites.

    Pyro leaves these densities out.

    Arguments:
        elbo: The objective of Pyro.
    """

    elbo: TraceMeanField_ELBO

    def differentiable_loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Any:
        """Computes minus the ELBO."""
        return self.elbo.differentiable_loss(model, WithPoints()(guide), *batch)


def _of_discrete_guide(program: Program, guide: ProgramLike, rows: Batch) -> ELBO:
    """Returns the objective for a guide with discrete sites.

    The objective enumerates these sites if the programs broadcast over the sites' values. Otherwise
    it draws the sites, and uses score-function gradients.
    """
    options = {
        "max_plate_nesting": program.structure.nesting,
        "strict_enumeration_warning": False,  # Pyro would warn if no site is enumerated
    }
    objective = TraceEnum_ELBO(**options)
    try:
        with undisturbed(), no_new_parameters():
            objective.differentiable_loss(model_for(program, guide, rows), guide, *rows)
    except Exception:  # shapes that do not broadcast raise many kinds of errors
        return DrawnELBO(**options)
    return objective


def objective_of(requested: ELBO | None, program: Program, guide: ProgramLike, rows: Batch) -> Any:
    """Returns the objective to use: the caller's, or a default that sums out discrete sites.

    Arguments:
        requested: The caller's objective; `None` for the default.
        program: The model.
        guide: The guide, which may sample discrete sites itself.
        rows: A few rows to run the guide on.
    """
    drawn = samples_discrete(program, guide, rows)
    names = [name for name in program.structure.enumerated if name not in drawn]
    # Whether sites are enumerated by repeating rows, because the program does not broadcast.
    repeats_rows = program.structure.combinations is not None and bool(names)
    if requested is None and drawn:
        return _of_discrete_guide(program, guide, rows)
    if requested is None and repeats_rows:
        return BetaELBO(1.0)
    if requested is None:
        nesting = program.structure.nesting
        return TraceEnum_ELBO(max_plate_nesting=nesting) if names else Trace_ELBO()
    if repeats_rows and isinstance(requested, TraceEnum_ELBO):
        raise ValueError(
            f"TraceEnum_ELBO enumerates the sites {list(names)} along new dimensions, but this "
            "program does not broadcast over these dimensions: omit `objective`, or pass "
            "`objective=pv.objectives.BetaELBO(1.0)`, which repeats rows instead"
        )
    if names and not isinstance(requested, TraceEnum_ELBO | Objective):
        raise ValueError(
            f"{type(requested).__name__} would draw the discrete latent sites {list(names)} from "
            "the prior: pass TraceEnum_ELBO, which sums these sites out, or omit `objective`"
        )
    return MeanField(requested) if isinstance(requested, TraceMeanField_ELBO) else requested
