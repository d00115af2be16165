r"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches.

Each step draws a batch of :math:`B` of the :math:`N` rows, and estimates the loss of the whole data
set from the batch: every site in the plate over data is scaled by :math:`N / B`. Then a torch
optimizer updates all leaves of the loss's autograd graph, whether a module registered them or not.
The ELBO is reported per datum, at full KL weight, for every objective. Several processes each train
on a range of the rows: see `sharding`.
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
from ..evidence.weights import check_more_data
from ..guides.entry import require_new_rows
from ..programs import as_batch, evaluating
from ..programs.modes import device_of, modules_of
from ..programs.traces import own_messages
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

    Parameters stay in their modules. Pyro's parameter store and the caller's random streams are not
    changed, and the same seed gives the same result. Ctrl-C ends training after the current step
    and returns the result so far; a second Ctrl-C stops at once. With several processes, Ctrl-C in
    one process ends training in all processes after the same step.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: A tensor of training data, or a tuple of tensors; or rows that are read on demand,
            such as :class:`pyro_vae.data.OnDisk` and memory-mapped arrays. Under torch.distributed
            each process passes its own rows of training and validation data, as returned by
            :func:`pyro_vae.distributed.share`. :class:`pyro_vae.data.Augmented` transforms every
            batch, for example by a new binarization. A map-style `torch.utils.data.Dataset` is read
            row by row.
        num_epochs: Number of passes over the data. The default is at least 50, and
            enough for 3,000 steps. With the default, training ends earlier if it has converged
            (:class:`pyro_vae.training.StopWhenConverged`).
        batch_size: Rows per step; the whole data set if it has fewer rows. The last batch of an
            epoch may be smaller; its loss is weighted by its number of rows.
        objective: A Pyro ELBO with a differentiable loss, or one of :mod:`pyro_vae.objectives`. The
            default is `Trace_ELBO()`; for a program with discrete latent sites, it is
            `TraceEnum_ELBO`, which sums these sites out. For a KL warm-up pass an objective with a
            schedule, `pv.BetaELBO(pv.objectives.LinearWarmup(10))`; reported ELBOs have full KL
            weight.
        optimizer: A function that makes a torch optimizer from a list of tensors, such as
            `functools.partial(torch.optim.SGD, lr=0.1)`; by default Adam with step size 2e-3
            and second beta 0.99 (:func:`pyro_vae.training.adam`). If an optimizer object is passed,
            a new one with the same class, settings and step hooks is used, and the state of the
            object is ignored. A `LocalParameters` table has its own optimizer. To limit the norm of
            the gradient, use :func:`pyro_vae.training.clipped`.
        scheduler: A function that makes a torch scheduler from the optimizer; the scheduler is
            stepped once per epoch. The default is :func:`hold_then_fall`; :func:`constant` keeps
            the step size fixed. `ReduceLROnPlateau`, in either mode, follows the validation ELBO,
            or without validation data the training ELBO.
        validation: Held-out data; their ELBO per datum is computed after every epoch, always from
            the same draws, so that epochs can be compared. For a `LocalParameters` guide, new
            parameters are fitted to these data with the model fixed.
        patience: Number of epochs without a better validation ELBO after which training stops,
            counted from the end of the objective's schedule.
        train_model: Whether the model's parameters are trained, or only the guide's.
        callbacks: Objects that are called during training; those of
            :mod:`pyro_vae.training.callbacks` print, plot, stop early, or log to TensorBoard,
            MLflow or W&B.
        checkpoint: A folder for the state of training, or a :class:`Checkpoint`, which also sets
            how often the state is written. The same call of `fit` resumes from that state, ignoring
            the initial weights of model and guide. It ends with the same results, bit for bit, as a
            run that was never stopped. A checkpoint of other data, programs or arguments is
            refused. A checkpoint is also written at the end, on Ctrl-C, on SIGTERM, and, if there
            is only one process, after an error between steps. With several processes, the first
            process writes the states of all processes, and the same number of processes must
            resume.
        compile: Whether to compile whole steps (programs, gradient and optimizer). Compiling takes
            about ten seconds once, and then makes steps several times faster. By default steps are
            compiled if this saves time overall. Steps that cannot be compiled run eagerly, and the
            result says why. If a program counts its calls in a Python variable, pass
            `compile=False`. If a callback changes a number in a program, such as a temperature,
            the remaining steps run eagerly.
        precision: :class:`BFloat16Products` or :class:`TF32Products`, for hardware with fast
            low-precision products. Gradients are then those of a slightly different ELBO. The
            difference of the two ELBOs on the same draws is measured at the end (`Fit.rounding`).
            Validation is in full precision.
        seed: Seed of the run.
        device: Device to train on; by default the model's.
        progress: Whether to show a progress bar; by default on terminals and in notebooks.

    Returns:
        The history of training, and how it ended. The modules hold the state of the epoch with the
        best validation ELBO, or without validation data the state of the last epoch.

    Raises:
        ValueError: If data, model and guide do not fit together, or an argument is out of range.
        FloatingPointError: If the loss or a gradient is not finite; the error names the step, the
            epoch, the rows, and the site or the parameter. The modules hold the last finite state;
            per-row parameters of some shards may be one step ahead.
        RuntimeError: If another process failed; the error says how.

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
        if held_out is None and any(isinstance(part, EarlyStopping) for part in plan.callbacks):
            raise ValueError(
                "early stopping requires the ELBO of held-out data: pass `validation` too"
            )
        missing = check_rows(model, guide, reader)
        if held_out is not None:
            check_more_data(model, head(reader), held_out, "validation")
            if isinstance(reader, InMemory):
                require_new_rows(model, guide, reader.batch)
    distributed.require_same("the options of fit", plan.common_options(held_out, patience))
    cut = Shards.of(len(reader), seed)
    plan = plan.over(cut.num_data)
    refuse_running_averages(cut.count, min(batch_size, cut.num_data), model, guide)
    with _training_mode(model, guide, train_model=train_model), forked(seed, "fit"):
        fixed = Parts() if train_model else parts_of(model, guide, head(reader))
        with frozen(fixed):
            with distributed.fail_together():
                training = Training(model, guide, reader, augmented, held_out, plan, cut)
            start_equal(model, guide, training.tensors)
            result = training.run()
    return replace(result, missing=share_missing(distributed.total(missing)))


@contextmanager
def _training_mode(model: ProgramLike, guide: ProgramLike, *, train_model: bool) -> Iterator[None]:
    """Puts the guide and, if it is trained, the model into training mode inside the block.

    Inside the block, Pyro's store gets no parameters. At the end, the modes of all modules are
    restored.
    """
    with (
        torch.inference_mode(False),  # noqa: FBT003 (torch's signature)
        torch.enable_grad(),
        own_messages(),
        evaluating(model, guide),  # records all modes and restores them
        warnings.catch_warnings(),
    ):
        # Pyro only warns of values that are not finite; here an error names the row and the step.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf)", UserWarning)
        for program in (model, guide) if train_model else (guide,):
            for module in modules_of(program):
                module.train()
        yield
