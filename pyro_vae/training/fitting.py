r"""Stochastic variational inference: `fit` trains a model and a guide on mini-batches.

Each step draws a batch of :math:`B` rows, estimates the loss of the whole data set from it
(every site in the plate over data scaled by :math:`N / B`), and takes a step of a torch optimizer
on all leaves of the loss's autograd graph, so nothing is left untrained because nobody
registered it. What is reported is the ELBO per datum, at full KL weight, whatever is optimized.
A batch may come from several shards of the data, and shards from several processes: see
`sharding`.
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
from ..evidence import check_data
from ..guides import require_new_rows
from ..programs import as_batch, device_of, evaluating, modules_of
from ..randomness import forked
from .callbacks import Callback, EarlyStopping, check_callbacks
from .checkpoints import Checkpoint
from .optimizers import OptimizerFactory, SchedulerFactory, adam, hold_then_fall
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
    num_epochs: int = 50,
    batch_size: int = 64,
    objective: ELBO | None = None,
    optimizer: OptimizerFactory = adam,
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
    stream does not move, and the same seed gives the same result. Ctrl-C ends training after the
    current step and returns what there is, a second one at once; one of several processes it ends
    with the rest.

    Arguments:
        model: A Pyro program `model(*batch)` with one plate over data.
        guide: A :class:`pyro_vae.Guide`, or a guide program written by hand.
        data: The training tensor, or a tuple of them; or rows that are read when they are
            needed, as :class:`pyro_vae.data.OnDisk` and memory-mapped arrays are. Under
            torch.distributed each process is given its own rows, as
            :func:`pyro_vae.distributed.share` cuts them, and validation data likewise.
            :class:`pyro_vae.data.Augmented` changes every batch, as by a new binarization. A
            map-style `torch.utils.data.Dataset` is read row by row.
        num_epochs: Passes over the data.
        batch_size: Rows a step; the whole data set if there are fewer rows. The last batch of an
            epoch may be smaller, and counts by its rows.
        objective: A Pyro ELBO with a differentiable loss, or one of :mod:`pyro_vae.objectives`;
            `Trace_ELBO()` unless told otherwise, and `TraceEnum_ELBO` where the program has
            discrete latent sites, which it sums out. A warm-up of the KL term is its schedule,
            `pv.BetaELBO(pv.objectives.LinearWarmup(10))`; reported numbers have full weight always.
        optimizer: Makes a torch optimizer from a list of tensors; Adam with 2e-3 by default, or
            e.g. `functools.partial(torch.optim.SGD, lr=0.1)`. A `LocalParameters` table brings
            its own. :func:`pyro_vae.training.clipped` limits the gradient of another one.
        scheduler: Makes a torch scheduler from the optimizer; stepped once an epoch. By default
            :func:`hold_then_fall`; :func:`constant` leaves the step size alone. One that waits for
            a plateau is told the ELBO, of the validation data if there are such.
        validation: Held-out data, whose ELBO per datum is computed after every epoch. For a
            `LocalParameters` guide free parameters are fitted to them with the model fixed.
        patience: Stops after so many epochs without a better validation ELBO, counted from the
            end of the objective's schedule.
        train_model: Whether the model's parameters are trained, or only the guide's.
        callbacks: What is called while training goes on: :mod:`pyro_vae.training.callbacks` has
            some that print, draw, stop early, or write for TensorBoard, MLflow and W&B.
        checkpoint: A folder (or a :class:`Checkpoint`, with how often) where all that training
            needs to go on is kept. The same call goes on from there, and ends at the same bits as
            if it had never been stopped; the weights that model and guide come with do not matter
            then. A checkpoint of other data, programs or arguments is refused. Written at the end,
            too, by Ctrl-C, by SIGTERM, or by an error between steps. In one process only.
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
    stopping = () if patience is None else (EarlyStopping(patience),)
    plan = Plan(
        num_epochs, batch_size, objective, optimizer,
        scheduler or hold_then_fall(num_epochs),
        train_model, (*check_callbacks(callbacks), *stopping),
        Checkpoint(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint,
        compile, precision, seed, progress,
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
    distributed.require_same("what fit is told", plan.told(held_out, patience))
    cut = Shards.of(len(reader), seed)
    refuse_running_averages(cut.count, min(batch_size, cut.num_data), model, guide)
    with _training(model, guide, train_model=train_model), forked(seed, "fit"):
        fixed = Parts() if train_model else parts_of(model, guide, head(reader))
        with frozen(fixed):
            with distributed.together():
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
        evaluating(model, guide),  # notes every mode, restores it
        warnings.catch_warnings(),
    ):
        # Pyro only warns of these; here they are errors, which name the row and the step.
        warnings.filterwarnings("ignore", r"Encountered (NaN|\+inf)", UserWarning)
        for program in (model, guide) if train_model else (guide,):
            for module in modules_of(program):
                module.train()
        yield
