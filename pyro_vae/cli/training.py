"""Commands that describe data, and commands that train: describe, compare, fit."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .. import defaults
from ..comparisons import Comparison, compare
from ..comparisons.reporting import title_of
from ..comparisons.saving import require_place
from ..data import Dataset
from ..data.dataset import parts_of
from ..data.sets import SETS, shared_kinds, table_of, without
from ..data.tables import describe
from ..evidence import ImportanceSampling
from ..storage.folders import require_notes, require_place_for_model
from ..tables import TableVAE, saved_beside, training_scale
from ..training import fit
from .options import CompareChoice, DataChoice, FitChoice, ModelChoice, Run, show


def describe_data(which: DataChoice, run: Run) -> None:
    """Prints how each column of a file is interpreted, and why."""
    frame = None
    if which.data not in SETS and not which.is_grey:
        frame = table_of(Path(which.data), which.key, which.layout, which.drop, which.declared)
    if frame is None:
        show(which.load(run.seed).describe())
        return
    frame = without(frame, which.drop)
    show(describe(frame, which.declared, shared=shared_kinds(frame)))


def compare_guides(which: DataChoice, how: ModelChoice, choice: CompareChoice, run: Run) -> None:
    """Trains a model with each guide; then trains all guides again for the first of the models."""
    if choice.out is not None:
        require_place(choice.out)
        how.require_apart(choice.out)
    dataset, architecture = how.load(which, run.seed)
    run.say(dataset.describe())
    model = defaults.vae(dataset, architecture)
    maps = {
        name: defaults.inference_map(name, dataset, architecture, model) for name in choice.guides
    }
    given = {
        "evaluation": ImportanceSampling(choice.samples),
        "labels": dataset.test_labels,
        "image_shape": dataset.image_shape,
        "log_scale": dataset.log_scales,
        "about": {**_notes(which, how, run, dataset), **saved_beside(dataset)},
        "progress": run.progress,
        **how.fitting(dataset, run.seed),
    }
    table = last = compare(model, maps, *parts_of(dataset), **given | how.kept("every_model"))
    run.say(f"\n{title_of(table)}\n\n{table.summary()}")
    if choice.out is not None:
        table.save(choice.out)  # before the next training, which may be interrupted
    name, first = next(iter(table.results.items()))
    if not choice.no_fixed and not _interrupted(table):
        given |= how.kept("fixed_model")
        last = compare(first.model, maps, *parts_of(dataset), train_model=False, **given)
        run.say(f"\nThe model trained with '{name}', fixed\n\n{last.summary()}")
        if choice.out is not None:
            table.save(choice.out, fixed=last)
    if choice.out is not None:
        run.say(f"\nwrote {choice.out}/; start with {choice.out / 'report.html'}")
    if _interrupted(last):
        _end_interrupted("training was interrupted, so guides may be missing", how)


def fit_guide(which: DataChoice, how: ModelChoice, choice: FitChoice, run: Run) -> None:
    """Trains a model with one guide, and saves both."""
    if choice.out is not None:
        require_place_for_model(choice.out)
        how.require_apart(choice.out)
    dataset, architecture = how.load(which, run.seed)
    notes = require_notes(_notes(which, how, run, dataset))  # refused before training
    run.say(dataset.describe())
    vae = TableVAE.of(dataset, architecture, guide=choice.guide)
    train, _ = parts_of(dataset)
    found = fit(
        vae.model, vae.guide, train, progress=run.progress, **how.fitting(dataset, run.seed)
    )
    result = replace(found, log_scale=training_scale(dataset))
    run.say(result.summary())
    if choice.out is not None and result.history.epoch.size > 0:  # if none, keep an older model
        vae.history = result
        vae.save(choice.out, notes)
        run.say(f"wrote {choice.out}/")
    if result.stopped == "interrupted":
        _end_interrupted(result.summary(), how)


def _end_interrupted(what: str, how: ModelChoice) -> None:
    """Reports an interrupt on standard error, and exits with the status that shells expect."""
    remedy = (
        "run the same command again to resume training"
        if how.resume
        else "use --resume FOLDER to be able to resume next time"
    )
    show(f"pyro-vae: {what}: {remedy}", as_error=True)
    raise KeyboardInterrupt


def _notes(which: DataChoice, how: ModelChoice, run: Run, dataset: Dataset) -> dict[str, Any]:
    """Returns notes to save with a model, with all settings needed to preprocess new data."""
    return {
        "command": run.typed,
        "data": {**asdict(which), "drop": list(which.drop), "missing": list(which.missing)},
        "data set": dataset.describe(),
        "model": {
            **asdict(how),
            "hidden": None if how.hidden is None else list(how.hidden),
            "resume": None,
        },
        "seed": run.seed,
    }


def _interrupted(table: Comparison) -> bool:
    """Whether the training of any guide was interrupted."""
    return any(run.interrupted for run in (table, *table.others))
