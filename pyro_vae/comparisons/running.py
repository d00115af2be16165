r"""Trains a copy of a model under each guide, and evaluates all guides in the same way.

If each guide trains its own model, only :math:`\log p(y)` of held-out data can be compared, because
:math:`\log p(y)` depends on the model alone. If the model is fixed, ELBOs can be compared, too: the
differences of ELBOs are the cost of the choice of guide.
"""

import math
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from .. import diagnostics, evidence
from .._types import Batch, Data, ProgramLike
from ..data import Augmented
from ..data.streams import augmentation_of
from ..evidence import Estimator, ImportanceSampling, LogMarginal
from ..evidence.estimates import posterior_means
from ..evidence.weights import check_data, check_more_data
from ..formatting import count_of
from ..gaps import inference_gap
from ..guides import Family, Guide, InferenceMap, RowFit
from ..guides.entry import (
    for_new_rows,
    has_only_rows,
    has_parameters,
    maps_of,
    model_of,
    refined_guide,
    require_new_rows,
    row_fit_of,
)
from ..programs import Program, as_batch, minibatch
from ..programs.copies import Copies, no_new_parameters
from ..programs.modes import device_of
from ..programs.pieces import take_rows
from ..progress import progress_bar
from ..randomness import forked
from ..storage.folders import require_notes
from ..training import Checkpoint, Fit, History, fit
from ..writing import is_visible
from .comparison import Comparison
from .results import REFINING_STEPS, GuideResult

Candidate: TypeAlias = InferenceMap | tuple[InferenceMap, Family] | Guide | ProgramLike
"""A guide to compare: a map, a map with a family, a guide of this model, or a guide program."""

_NOT_NOTED = {"callbacks", "checkpoint"}  # options that do not affect the results
_TRAIN_DRAWS = 100  # draws per datum for the ELBO of the training data


@runtime_checkable
class _Resettable(Protocol):
    def reset_parameters(self) -> None: ...


def compare(  # noqa: PLR0913 (options of fit and evaluation)
    model: ProgramLike,
    guides: Mapping[str, Candidate],
    train: Data | Augmented,
    test: Data,
    *,
    train_model: bool = True,
    num_epochs: int = 500,
    evaluation: ImportanceSampling | None = None,
    estimator: Estimator | None = None,
    labels: Tensor | None = None,
    image_shape: tuple[int, int] | None = None,
    log_scale: float | Callable[[Tensor], Tensor] = 0.0,
    about: Mapping[str, Any] | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    progress: bool | None = None,
    **fit_options: Any,
) -> Comparison:
    r"""Compares guides: trains a copy of the model under each, and evaluates all in the same way.

    Every copy starts from the same weights and sees the same batches. Held-out data are evaluated
    with the same estimator and draws for all guides. A guide tied to rows (`LocalParameters`) is
    fitted afresh to held-out data, with the model fixed, because a new datum has no row.

    If every guide trains its own model, only :math:`\log p(y)` can be compared: it shows which
    model is best. A difference in ELBO could be due to the model or to the inference. With
    `train_model=False`, the model is fixed and only inference differs, so ELBOs can be compared,
    too. Within errors, per-datum guides then have the highest ELBO, amortized guides the next
    highest, and global guides the lowest.

    Arguments:
        model: A Pyro program `model(*batch)`: a module, a module's method, or a function. It is
            copied with its networks and its parameters in Pyro's store; the original is not
            changed.
        guides: Guides by name. Each is a map, a `(map, family)` pair, a :class:`pyro_vae.Guide` of
            this model, or a guide program written by hand. Guides are copied, too.
        train: Training data, a tensor or a tuple of tensors; with :class:`pyro_vae.data.Augmented`
            every batch is transformed.
        test: Held-out data.
        train_model: Whether every guide trains its copy of the model, or the model is fixed.
        num_epochs: Passes over the training data.
        evaluation: Importance sampling from the guide, by default with 1000 draws per datum. The
            weights show whether the guide covers the posterior; the column log p comes from
            `estimator`. ELBOs and gaps of held-out data use this number of draws, too.
        estimator: Estimator of the column log p; by default :class:`pyro_vae.Tightest` with as many
            draws as `evaluation`.
        labels: Classes of the held-out data, for pictures only.
        image_shape: Height and width of a datum, for pictures only.
        log_scale: Nats per datum to add to log densities to convert them to the data's own units,
            if the data were rescaled (see :class:`pyro_vae.data.Dataset`): a number, or, if entries
            are missing, a function from rows to one number per row, such as `dataset.log_scales`.
        about: Notes to save with the results, such as the data set and its binarization; the
            values are strings, numbers or lists.
        seed: Seed of all random numbers.
        num_seeds: How often to run the comparison, each time with the next seed. In every run after
            the first, networks start from new weights, drawn by `reset_parameters`. If the model is
            fixed, its networks keep their weights. With several runs, the table shows the spread
            between runs. Ctrl-C during training ends the comparison after the guide that is being
            trained.
        progress: Whether to show progress bars; by default on terminals and in notebooks.
        fit_options: Further arguments of :func:`pyro_vae.fit`. With `checkpoint=folder` every
            training run is saved in its own subfolder, and the same call of `compare` resumes it.

    Returns:
        The results of all guides, as a table, figures or ArviZ data; they can be saved to a folder.

    Raises:
        ValueError: If there is no guide or no run, if a guide's name is blank, if `about` is not
            JSON, or if data, model and guides do not fit together.
        TypeError: If a model or a guide refers to its parameters in a way that cannot be copied.

    References:
        | Inference Suboptimality in Variational Autoencoders (Cremer et al., 2018)
        | https://arxiv.org/abs/1801.03558
        | Amortized Variational Inference: When and Why? (Margossian & Blei, 2024)
        | https://arxiv.org/abs/2307.11018

    Example:
        >>> import pyro_vae as pv
        >>> model = pv.models.VAE(pv.nets.MLPDecoder(1, 4), pv.likelihoods.Gaussian(), 1)
        >>> y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        >>> table = compare(
        ...     model,
        ...     {"amortized": pv.Encoder(pv.nets.MLPEncoder(4)), "global": pv.GlobalParameters()},
        ...     y[:20], y[20:], num_epochs=2, evaluation=ImportanceSampling(50), progress=False,
        ... )
        >>> [row.guide for row in table.rows()]
        ['amortized', 'global']
    """
    _check_names(guides)
    notes = require_notes(about or {})
    where = device_of(model)
    stored, augmented = augmentation_of(train)
    batch, held_out = as_batch(stored, where, "train"), as_batch(test, where, "test")
    check_data(model, batch, "train", for_training=True)
    check_more_data(model, batch, held_out, "test")
    _check_pictures(held_out[0], labels, image_shape)
    train_scale, scale = (
        float(log_scale(part[0].double()).mean()) if callable(log_scale) else log_scale
        for part in (batch, held_out)
    )
    options = {"num_epochs": num_epochs, "seed": seed, "progress": progress, **fit_options}
    draws = evaluation or ImportanceSampling(1000)
    run = _Run(model, batch, augmented, held_out, draws, estimator, options, train_model)
    details = {
        **notes,
        **{name: repr(value) for name, value in options.items() if name not in _NOT_NOTED},
        **({} if augmented is None else {"each batch": repr(augmented.augment)}),
        "seed": seed,
        "train_model": train_model,
        "num_train": len(batch[0]),
        "num_test": len(held_out[0]),
        "log_scale": scale,
        "evaluation_draws": draws.num_samples,
    }
    tables: list[Comparison] = []
    for number in range(num_seeds):
        with no_new_parameters():
            results = run.under(seed + number, fresh=number > 0).results(guides)
        notes = {**details, "seed": seed + number}
        tables.append(Comparison(results, held_out, labels, image_shape, scale, notes, train_scale))
        if tables[-1].interrupted:
            break
    return replace(tables[0], others=tuple(tables[1:]))


def _check_names(guides: Mapping[str, Candidate]) -> None:
    """Refuses blank names and names with control characters, before anything is trained."""
    if not guides:
        raise ValueError(
            "`guides` must have at least one entry; got an empty mapping: pass a guide, as in "
            "{'global': pv.GlobalParameters()}"
        )
    for name in guides:
        is_line = not {unicodedata.category(letter) for letter in name} & {"Cc", "Cs"}
        if not (is_line and is_visible(name)):
            raise ValueError(
                f"each name in `guides` must be one line of visible text; got {name!r}: use a "
                "plain name, as in {'amortized': ...}"
            )


def _check_pictures(y: Tensor, labels: Tensor | None, image_shape: tuple[int, int] | None) -> None:
    """Refuses labels and an image shape that do not fit the data, before anything is trained."""
    if labels is not None and labels.shape[:1] != y.shape[:1]:
        raise ValueError(
            f"`labels` must have one label per held-out row, {len(y)} in all; got shape "
            f"{tuple(labels.shape)}: pass the labels of `test`"
        )
    if image_shape is not None and math.prod(image_shape) != y[0].numel():
        raise ValueError(
            "`image_shape` must be the height and width of a datum of "
            f"{count_of(y[0].numel(), 'number')}; got {image_shape[0]} x {image_shape[1]}: pass "
            "the right height and width, or omit `image_shape`"
        )


@contextmanager
def _naming_guide(name: str) -> Iterator[None]:
    """Adds the name of a guide to the message of an error that is raised in the block."""
    try:
        yield
    except (FloatingPointError, TypeError, ValueError) as error:
        error.args = (f"guide '{name}': {error}",)
        raise


@dataclass(frozen=True)
class _Run:
    """Settings shared by all guides.

    Arguments:
        model: The model, which is copied for each guide.
        train: Training data.
        augmented: The transformation of each batch; `None` if batches are not transformed.
        test: Held-out data.
        evaluation: Importance sampling from each guide.
        estimator: Estimator of log p; `None` for the default.
        options: Arguments of `fit`.
        train_model: Whether every guide trains its copy of the model.
        fresh: Whether networks start from new weights.
    """

    model: ProgramLike
    train: Batch
    augmented: Augmented | None
    test: Batch
    evaluation: ImportanceSampling
    estimator: Estimator | None
    options: dict[str, Any]
    train_model: bool
    fresh: bool = False

    def under(self, seed: int, *, fresh: bool) -> "_Run":
        """Returns a copy of these settings with another seed."""
        return replace(self, options={**self.options, "seed": seed}, fresh=fresh)

    def results(self, guides: Mapping[str, Candidate]) -> dict[str, GuideResult]:
        """Trains and evaluates every guide; Ctrl-C during training skips the remaining guides."""
        Program(self.model, *self._few).require_latents()
        pairs = {}
        for name, candidate in guides.items():
            with _naming_guide(name):
                pairs[name] = self._copies(candidate)
        results: dict[str, GuideResult] = {}
        bar = progress_bar(pairs.items(), show=self.options["progress"], desc="guides")
        for place, (name, (model, guide)) in enumerate(bar):
            first = next(iter(results.values()), None)
            with _naming_guide(name):
                results[name] = self._with_own_checkpoint(place).result(model, guide, first)
            if results[name].fit.stopped == "interrupted":
                break
        return results

    def _with_own_checkpoint(self, place: int) -> "_Run":
        """Copies these settings, with a separate checkpoint folder for the seed and the guide.

        The folder is numbered by `place`, the position of the guide in the comparison.
        """
        given = self.options.get("checkpoint")
        if given is None:
            return self
        shared = given if isinstance(given, Checkpoint) else Checkpoint(given)
        folder = Path(shared.folder) / f"seed_{self.options['seed']}" / f"guide_{place}"
        return replace(self, options={**self.options, "checkpoint": replace(shared, folder=folder)})

    def result(
        self, model: ProgramLike, guide: ProgramLike, first: GuideResult | None = None
    ) -> GuideResult:
        """Trains and evaluates a guide.

        With a fixed model, log p is taken from `first`, the result of the first guide.
        """
        start = time.perf_counter()
        guide, training = self._trained(model, guide)
        seconds = time.perf_counter() - start
        common, seed, test = self._common, self.options["seed"], self.test
        held_out = for_new_rows(guide, test, **common)
        estimator, draws = self._estimator(first), self.evaluation.num_samples
        gap = inference_gap(model, held_out, test, estimator=estimator, num_samples=draws, **common)
        better, refined = refined_guide(held_out, REFINING_STEPS), None
        if better is not None:
            refined = evidence.elbo(model, better, test, draws, **common).elbo
        return GuideResult(
            model=model,
            guide=guide,
            held_out_guide=held_out,
            fit=training,
            train_bound=self._train_bound(model, guide),
            test=evidence.evaluate(model, held_out, test, self.evaluation, **common),
            gap=gap,
            refined=refined,
            means=posterior_means(model, held_out, test, seed=seed),
            prior_variance=diagnostics.prior_variance(model, held_out, test, seed=seed),
            information=diagnostics.mutual_information(model, held_out, test, seed=seed),
            seconds=seconds,
        )

    @property
    def _common(self) -> dict[str, Any]:
        """The options that training and evaluation share."""
        return {name: self.options[name] for name in ("seed", "progress")}

    def _estimator(self, first: GuideResult | None) -> Estimator | None:
        """Returns the estimator of log p.

        If the model is fixed, log p does not depend on the guide, so the estimator returns the
        estimate in `first`, the result of the first guide. But if log p is conditional on global
        sites, which each guide infers, it is estimated anew for each guide.
        """
        if self.train_model or first is None or first.gap.given:
            return self.estimator
        estimate: LogMarginal = first.gap.log_marginal
        return lambda *_, **__: estimate

    def _train_bound(self, model: ProgramLike, guide: ProgramLike) -> evidence.EvidenceLowerBound:
        """Computes the ELBO of the training data, transformed once if training transforms them.

        Local parameters are looked up by the positions of rows, not by the transformed data.
        """
        batch, rows = self.train, torch.arange(len(self.train[0]), device="cpu")
        if self.augmented is not None:
            with forked(self.options["seed"], "compare.augmented"):
                batch = self.augmented.change(batch)
        with minibatch(rows, len(rows)):
            return evidence.elbo(model, guide, batch, _TRAIN_DRAWS, **self._common)

    def _copies(self, candidate: Candidate) -> tuple[ProgramLike, ProgramLike]:
        """Copies the model and the candidate, and builds the guide for the copied model."""
        copies = Copies(self._few, self.options["seed"])
        model = copies.of_program(self.model, trained=self.train_model)
        if self.train_model:
            self._restart(model, "model")
        pair = candidate if isinstance(candidate, tuple) else (candidate, None)
        if isinstance(pair[0], InferenceMap):
            parts = copies.of(pair)
            self._restart(parts[0], "guide")
            with forked(self.options["seed"], "weights.trunk"):  # for a layer on top of a trunk
                guide = Guide(model, *parts, example=take_rows(self.train, slice(1)))
            return model, guide.to(self.train[0].device)
        program: ProgramLike = pair[0]
        require_new_rows(self.model, program, self.train)  # before any guide is trained
        if model_of(program) not in (None, self.model):
            raise ValueError(
                "each guide must be built from the model that is passed to `compare`; got a "
                "pv.Guide of another model: build the guide from this model, or pass only its map"
            )
        copied = copies.of(program) if maps_of(program) else copies.of_program(program)
        self._restart(copied, "guide")
        return model, copied

    @property
    def _few(self) -> Batch:
        """The first two rows of the training data, on which programs are tried before training."""
        return take_rows(self.train, slice(2))

    def _restart(self, part: object, role: str) -> None:
        """Draws new weights of networks, with the run's seed, if `fresh` is set."""
        if not self.fresh or not isinstance(part, nn.Module):
            return
        with forked(self.options["seed"], f"weights.{role}"):
            for module in part.modules():
                if isinstance(module, _Resettable):
                    module.reset_parameters()

    def _trained(self, model: ProgramLike, guide: ProgramLike) -> tuple[ProgramLike, Fit]:
        """Trains model and guide.

        If only per-datum parameters are free, each datum is fitted separately instead.
        """
        if not self.train_model and has_only_rows(guide):
            start = time.perf_counter()
            guide = for_new_rows(guide, self.train, **self._common)
            seconds, rows = time.perf_counter() - start, row_fit_of(guide)
            assert rows is not None
            return guide, _as_fit(rows, seconds, self.options["seed"])
        if not self.train_model and not has_parameters(guide):
            empty = History(**{name: np.zeros(0) for name in History.__dataclass_fields__})
            return guide, Fit(empty, "finished", 0, self.options["seed"], ())
        data = self.train if self.augmented is None else replace(self.augmented, data=self.train)
        return guide, fit(model, guide, data, train_model=self.train_model, **self.options)


def _as_fit(rows: RowFit, seconds: float, seed: int) -> Fit:
    """Converts a fit of per-datum parameters to a training result, whose history has one entry."""
    values = {name: torch.nan for name in History.__dataclass_fields__}
    values |= {"epoch": rows.steps, "elbo": float(rows.elbo.mean()), "seconds": seconds}
    values |= {"kl_weight": 1.0, "loss": -values["elbo"]}
    history = History(**{name: np.array([value]) for name, value in values.items()})
    return Fit(history, "finished", rows.steps, seed, ("a row of parameters for every datum",))
