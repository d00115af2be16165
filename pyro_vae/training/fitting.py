r"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches.

Each step draws a batch of :math:`B` rows, estimates the loss of the whole data set from it (every
site in the plate over data scaled by :math:`N / B`), and takes a step of a torch optimizer on all
leaves of the loss's autograd graph, so parameters need not be registered to be trained. The ELBO is
reported per datum, at full KL weight, whatever the objective. A batch may come from several shards
of the data, and shards from several processes: see `sharding`.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch.utils.data import Dataset

from .. import distributed
from .._types import Data, ProgramLike
from ..data import Augmented, RowReader
from ..data.streams import augmentation_of
from ..evidence import check_more_data
from ..guides import require_new_rows
from ..programs import as_batch, device_of, evaluating, modules_of, own_messages
from ..randomness import forked
from .callbacks import Callback, EarlyStopping, check_callbacks
from .checkpoints import Checkpoint
from .optimizers import OptimizerFactory, SchedulerFactory, adam
from .plans import Plan
from .products import Products
from .results import Fit
from .rows import InMemory, check_rows, head, reader_of, share_missing
from .running import Training
from .sharding import Shards, refuse_running_averages, start_equal
from .tensors import Parts, frozen, parts_of


def fit(  # noqa: PLR0913 (DESIGN.md has the list)
    model: ProgramLike,
    guide: ProgramLike,
    data: Data | RowReader | Dataset[Any] | Augmented,
    *,
    num_epochs: int | None = None,
    batch_size: int = 64,
    objective: ELBO | None = None,
    optimizer: OptimizerFactory | torch.optim.Optimizer = adam,
    scheduler: SchedulerFactory | None = None,
    validation: Data | None = None,
    patience: int | None = None,
    train_model: bool = True,
    callbacks: Sequence[Callback] | Callback = (),
    checkpoint: Checkpoint | str | Path | None = None,
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
    stream is left alone, and the same seed gives the same result. Ctrl-C ends training after the
    current step and returns the result so far; a second Ctrl-C stops at once. With several
    processes, Ctrl-C in one of them ends all after the same step.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The training tensor, or a tuple of them; or rows that are read on demand, such as
            :class:`pyro_vae.data.OnDisk` and memory-mapped arrays. Under torch.distributed each
            process passes its own rows, cut by :func:`pyro_vae.distributed.share`, and likewise for
            validation data. :class:`pyro_vae.data.Augmented` transforms every batch, for example by
            a new binarization. A map-style `torch.utils.data.Dataset` is read row by row.
        num_epochs: Passes over the data. By default at most 50, or more if that is needed for
            3,000 steps; training then ends earlier if it has converged
            (:class:`pyro_vae.training.StopWhenConverged`).
        batch_size: Rows per step; the whole data set if it has fewer rows. The last batch of an
            epoch may be smaller, and is weighted by its rows.
        objective: A Pyro ELBO with a differentiable loss, or one of :mod:`pyro_vae.objectives`; by
            default `Trace_ELBO()`, or `TraceEnum_ELBO` if the program has discrete latent sites,
            which it sums out. For a KL warm-up pass an objective with a schedule,
            `pv.BetaELBO(pv.objectives.LinearWarmup(10))`; reported ELBOs have full KL weight.
        optimizer: Makes a torch optimizer from a list of tensors; Adam with 2e-3 by default, or
            e.g. `functools.partial(torch.optim.SGD, lr=0.1)`. Of an optimizer object, the class
            and the settings are used, group by group, but not the state. A `LocalParameters` table
            has its own optimizer. :func:`pyro_vae.training.clipped` makes an optimizer limit the
            norm of the gradient.
        scheduler: Makes a torch scheduler from the optimizer; stepped once per epoch. By default
            :func:`hold_then_fall`; :func:`constant` keeps the step size fixed. A plateau scheduler
            is given the validation ELBO, or the training ELBO without validation data.
        validation: Held-out data, whose ELBO per datum is computed after every epoch. For a
            `LocalParameters` guide, new parameters are fitted to these data with the model fixed.
        patience: Stops after this many epochs without a better validation ELBO, counted from the
            end of the objective's schedule.
        train_model: Whether the model's parameters are trained, or only the guide's.
        callbacks: Objects called during training: :mod:`pyro_vae.training.callbacks` has some that
            print, plot, stop early, or log to TensorBoard, MLflow and W&B.
        checkpoint: A folder (or a :class:`Checkpoint`, which also sets how often) for the state of
            training. The same call resumes from there and ends with bit-identical results, as if it
            had never been stopped; the initial weights of model and guide are then ignored. A
            checkpoint of other data, programs or arguments is refused. It is also written at the
            end, on Ctrl-C, on SIGTERM, and, in one process, after an error between steps. With
            several processes the first one writes the states of all, and as many must resume.
        compile: Whether whole steps (programs, gradient and optimizer) are compiled, which takes
            about ten seconds once and then makes steps several times faster. By default this is
            done if it saves time overall. Steps that cannot be compiled run eagerly, and the result
            says why.
            A program that counts its calls outside of tensors needs `compile=False`.
        precision: :class:`BFloat16Products` or :class:`TF32Products`, for hardware that is faster
            with them. Gradients are then those of a slightly different ELBO; the difference is
            measured at the end, on the same draws (`Fit.rounding`). Validation is in full
            precision.
        seed: Seed of the run.
        device: Device to train on; by default the model's.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The history and how training ended. The modules hold the state of the best epoch by
        validation ELBO, or of the last epoch without validation data.

    Raises:
        ValueError: If data, model and guide do not fit together, or an argument is out of range.
        FloatingPointError: If the loss or a gradient is not finite: names the step, the epoch, the
            batch, and the site or the parameter. The modules hold the last finite state; per-row
            parameters of some shards may be one step ahead.
        RuntimeError: If another process failed; says how.

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
    stopping = () if patience is None else (EarlyStopping(patience),)
    plan = Plan(
        num_epochs, batch_size, objective, optimizer,
        scheduler,
        train_model, (*check_callbacks(callbacks), *stopping),
        Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint,
        compile, precision, seed, progress,
    )  # fmt: skip
    for module in (part for program in (model, guide) for part in modules_of(program)):
        module.to(device)
    where = device_of(model, guide)
    stored, augmented = augmentation_of(data)
    with distributed.fail_together():
        reader = reader_of(stored, where)
        held_out = None if validation is None else as_batch(validation, where, "validation")
        if patience is not None and held_out is None:
            raise ValueError("patience waits for the ELBO of held-out data: pass validation= too")
        missing = check_rows(model, guide, reader)
        if held_out is not None:
            check_more_data(model, head(reader), held_out, "validation")
            if isinstance(reader, InMemory):
                require_new_rows(model, guide, reader.batch)
    distributed.require_same("what fit is told", plan.told(held_out, patience))
    cut = Shards.of(len(reader), seed)
    plan = plan.over(cut.num_data)
    refuse_running_averages(cut.count, min(batch_size, cut.num_data), model, guide)
    with _training(model, guide, train_model=train_model), forked(seed, "fit"):
        fixed = Parts() if train_model else parts_of(model, guide, head(reader))
        with frozen(fixed):
            with distributed.fail_together():
                training = Training(model, guide, reader, augmented, held_out, plan, cut)
            start_equal(model, guide, training.tensors)
            result = training.run()
    return replace(result, missing=share_missing(distributed.total(missing)))


@contextmanager
def _training(model: ProgramLike, guide: ProgramLike, *, train_model: bool) -> Iterator[None]:
    """Runs programs in training mode, with parameters in modules; restores every mode."""
    with (
        torch.inference_mode(False),  # noqa: FBT003 (so torch has it)
        torch.enable_grad(),
        own_messages(),
        evaluating(model, guide),  # notes every mode, restores it
        warnings.catch_warnings(),
    ):
        # Pyro only warns of these; here they are errors, which name the row and the step.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf)", UserWarning)
        for program in (model, guide) if train_model else (guide,):
            for module in modules_of(program):
                module.train()
        yield
