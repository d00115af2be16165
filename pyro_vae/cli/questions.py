"""Commands that use a saved model: evaluate, embed, impute, outliers, explain, report, sample.

Output files keep the order of the input, and start with columns that identify the rows: their
positions, the index, and the columns that were left out of the model.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import storage
from .._types import optional
from ..data import Columns, FixedDraw, Redrawn, Scaling
from ..data.dataset import parts_of, trained_on
from ..data.files import key_for
from ..data.frames import columns_of, index_of, lists_of
from ..data.raw_columns import is_gone
from ..data.sets import SETS, grey_levels, rows_of, table_of, without
from ..evidence import ImportanceSampling, Tightest
from ..formatting import count_of, first_few
from ..randomness import row_digests
from ..report import Report, png
from ..stats import FalseDiscoveries
from ..table_report import Subject, identifying, report_of
from ..tables import TableVAE
from ..writing import require_file_place, whole_file, write_csv
from .options import (
    BINARIZATIONS,
    DataChoice,
    EmbedChoice,
    EvaluateChoice,
    ExplainChoice,
    ImputeChoice,
    OutliersChoice,
    Question,
    ReportChoice,
    Run,
    SampleChoice,
)

Value = TypeVar("Value")
Entries: TypeAlias = Sequence[object] | Tensor | np.ndarray
"""The entries of a column of results, which is written to a file."""
_SHOWN = 10  # number of outliers that are printed
# Packages needed to write a file, or to draw its pictures.
_NEEDED = {".parquet": ("pandas", "pyarrow"), ".png": ("matplotlib",), ".html": ("matplotlib",)}


@dataclass(frozen=True)
class Selection:
    """A saved model and the rows to apply it to.

    Arguments:
        vae: The model.
        rows: A table or a tensor of rows, with the columns that the model was trained on.
        names: Columns that identify the rows, by name.
        frame: The table of these rows, including the columns that were left out of the model; None
            if the rows are a tensor.
        title: A description of the rows.
        seen: How many of these rows are known to be training rows.
    """

    vae: TableVAE
    rows: Any
    names: Mapping[str, Sequence[object]]
    frame: Any
    title: str
    seen: int = 0


def selection_of(question: Question, run: Run) -> Selection:
    """Loads a model, and the rows to apply it to: those of a given file, or the held-out rows."""
    vae, about = TableVAE.load(question.folder), _about(question.folder)
    which = DataChoice(**about["data"])
    name = question.data or which.data
    if name in SETS:
        if name != which.data:  # options of the training data may not fit this data set
            which = DataChoice(name, which.binarize)
        dataset = which.load(about["seed"], grey=about["model"]["likelihood"] == "bernoulli")
        rows = parts_of(dataset)[1]
        return Selection(vae, rows, {"row": range(len(rows))}, None, dataset.describe())
    path = Path(name)
    held_out = question.data is None
    if held_out and not path.exists():
        raise FileNotFoundError(
            f"the model in '{question.folder}' was trained on rows of '{path}', but there is no "
            "such file: name a file of rows as DATA, after the folder of the model, or run the "
            "command in the folder where the model was trained"
        )
    which = replace(which, key=key_for(path, which.key))
    if isinstance(vae.units, Columns):
        return _of_table(vae, which, path, run, held_out=held_out)
    return _of_grey(vae, which, path, run, held_out=held_out)


def _of_table(
    vae: TableVAE, which: DataChoice, path: Path, run: Run, *, held_out: bool
) -> Selection:
    """Reads a table; selects the rows to use, and the columns that identify these rows."""
    frame = table_of(path, which.key, which.layout, which.drop, which.declared)
    if frame is None:
        assert isinstance(vae.units, Columns), "the caller calls this function only for tables"
        raise ValueError(
            f"the model was trained on a table with {count_of(len(vae.units.names), 'column')}, "
            f"{first_few(map(repr, vae.units.names))}, but '{path}' holds images, or an array of "
            "more than two axes: pass a file that has these columns"
        )
    dropped = [name for name in which.drop if name in columns_of(frame)]
    kept = without(frame, dropped)
    digests = row_digests(vae.rows(kept))
    places, title, seen = _rows_to_use(vae, digests, path, run, held_out=held_out)
    some = rows_of(frame, places)
    if _is_plain(index_of(frame)) and index_of(some) is not None:
        some = some.reset_index(drop=True)
    entries = lists_of(some)
    own = {**_labels(index_of(some)), **{name: entries[name] for name in dropped}}
    names = {"row": places, **_renamed(own, ["row"])}
    return Selection(vae, rows_of(kept, places), names, some, title, seen)


def _is_plain(index: object) -> bool:
    """Whether a table has no index, or an index that only numbers the rows."""
    return index is None or type(index).__name__ == "RangeIndex"


def _labels(index: Any) -> dict[str, list[Any]]:
    """Returns the index of a table as a named column; no column if it only numbers the rows."""
    return {} if _is_plain(index) else {str(index.name or "index"): list(index)}


def _renamed(own: Mapping[str, Value], results: Collection[str]) -> dict[str, Value]:
    """Renames every column whose name is also the name of a result, such as `log_p`."""
    return {f"{name} (table)" if name in results else name: own[name] for name in own}


def _of_grey(
    vae: TableVAE, which: DataChoice, path: Path, run: Run, *, held_out: bool
) -> Selection:
    """Reads rows of grey levels, and rescales and binarizes them like the training data."""
    y, *_ = grey_levels(path, which.key, which.layout, which.divide_by)
    places, title, seen = _rows_to_use(vae, row_digests(y), path, run, held_out=held_out)
    binarization = BINARIZATIONS[which.binarize or "none"]
    once = FixedDraw() if isinstance(binarization, Redrawn) else binarization
    return Selection(vae, once.fixed(y[places], part=2), {"row": places}, None, title, seen)


def _rows_to_use(
    vae: TableVAE, digests: Tensor, path: Path, run: Run, *, held_out: bool
) -> tuple[list[int], str, int]:
    """Returns the positions of the rows to use, a title, and the number of training rows used.

    All rows are used, or with `held_out` only the rows that the model was not trained on.
    """
    everyone = list(range(len(digests)))
    title = f"{path}: {count_of(len(everyone), 'row', ',')}"
    if vae.digests is None:
        if held_out:
            raise ValueError(
                f"pyro_vae does not know on which rows of '{path}' the model was trained: pass a "
                "file of rows as DATA"
            )
        return everyone, title, 0
    seen = trained_on(digests, vae.digests)
    known, gone = int(seen.sum()), len(vae.digests) - int(seen.sum())
    if not held_out:
        if known:
            run.say(
                f"the model was trained on {known:,} of the {count_of(len(everyone), 'row', ',')}, "
                "and fits these rows better than new rows"
            )
        return everyone, title, known
    if gone:
        run.say(
            f"'{path}' has changed: the file no longer has {gone:,} of the "
            f"{count_of(len(vae.digests), 'training row', ',')}"
        )
    places = (~seen).nonzero()[:, 0].tolist()
    if not places:
        raise ValueError(
            f"the model was trained on all rows of '{path}': pass a file with other rows"
        )
    title = f"{path}: {count_of(len(places), 'held-out row', ',')} of {len(everyone):,}"
    return places, title, 0


def evaluate_saved(question: Question, choice: EvaluateChoice, run: Run) -> None:
    """Evaluates log p(y) of each datum under a saved model, in nats, in the data's own units."""
    if choice.out is not None:
        check_out(choice.out / "log_p.csv", question=question)
    chosen = selection_of(question, run)
    found = chosen.vae.evaluate(
        chosen.rows, ImportanceSampling(choice.samples), seed=run.seed, progress=run.progress
    )
    if choice.tightest:
        best = chosen.vae.log_marginal_likelihood(
            chosen.rows, Tightest(choice.samples), seed=run.seed, progress=run.progress
        )
        found = replace(found, log_marginal=best)
    bound, result = found
    run.say(f"{chosen.title}\n{result.summary()}")
    if not choice.tightest and not bool(result.reliable.all()):
        run.say("the option --tightest fits better proposals for rows that cannot be trusted")
    run.say(
        f"mean log p is {result.mean:.3f} and mean ELBO is {bound.mean:.3f}, in nats per datum, "
        "in the data's own units"
    )
    if choice.out is not None:
        write_beside(chosen.names, choice.out / "log_p.csv", found.as_columns(), run)


def embed_rows(question: Question, choice: EmbedChoice, run: Run) -> None:
    """Writes the posterior mean of every row, with a column for each latent."""
    optional("pandas", needed_for="pyro-vae embed")
    check_out(choice.out, question=question)
    chosen = selection_of(question, run)
    frame = chosen.vae.embed(chosen.rows, seed=run.seed)
    run.say(
        f"{chosen.title}; {count_of(frame.shape[1], 'latent')}, which `pyro-vae explain` describes"
    )
    write_beside(chosen.names, choice.out, {name: frame[name].tolist() for name in frame}, run)


def impute_rows(question: Question, choice: ImputeChoice, run: Run) -> None:
    """Writes the table with missing entries filled in, and an interval for each such entry."""
    optional("pandas", needed_for="pyro-vae impute")
    entries_out = choice.out.with_stem(f"{choice.out.stem}_entries")
    for path in (choice.out, entries_out):
        check_out(path, question=question)
    chosen = selection_of(question, run)
    if chosen.frame is None:
        raise ValueError(
            "this command fills in missing entries only in tables, with a row per datum and a "
            "column per feature: for other data, such as images, call pv.impute in Python"
        )
    filled = chosen.vae.impute(chosen.rows, choice.draws, seed=run.seed, progress=run.progress)
    run.say(f"{chosen.title}\n{filled.summary()}")
    best = lists_of(filled.completed())
    known, every = lists_of(chosen.rows), lists_of(chosen.frame)
    holes = zip(best, filled.missing.T.tolist(), strict=True)  # also entries such as <0.5
    done = {
        name: [
            new if gone else old
            for gone, old, new in zip(missing, known[name], best[name], strict=True)
        ]
        for name, missing in holes
    }
    columns = {name: done.get(name, old) for name, old in every.items()}
    write(choice.out, columns, run, index=index_of(chosen.frame))
    entries = filled.entries()
    which = {name: [values[row] for row in entries["row"]] for name, values in chosen.names.items()}
    columns = {name: entries[name].tolist() for name in entries if name != "row"}
    write_beside(which, entries_out, columns, run)


def find_outliers(question: Question, choice: OutliersChoice, run: Run) -> None:
    """Writes a p-value for each row, from a comparison with data simulated from the model."""
    check_out(choice.out, question=question)
    control = FalseDiscoveries(choice.false_discoveries)
    chosen = selection_of(question, run)
    found = chosen.vae.outliers(chosen.rows, choice.reference, seed=run.seed, progress=run.progress)
    flagged, order = found.flagged(control), found.most_extreme(len(found))
    names = identifying(chosen.names)
    run.say(f"{chosen.title}\n{found.summary(control)}")
    for place in order[:_SHOWN].tolist():
        name = ", ".join(f"{key} {values[place]}" for key, values in names.items())
        mark = "  flagged" if flagged[place] else ""
        run.say(f"  {name}: p = {float(found.value[place]):.4f}{mark}")
    columns: dict[str, Entries] = {
        "p_value": found.value,
        "p_value_error": found.error,
        "log_p": found.log_p.value,
        "log_p_error": found.log_p.error,
        "reliable": found.reliable,
        "why_not": ["; ".join(found.why_not(row)) for row in range(len(found))],
        "flagged": flagged,
    }
    write_beside(chosen.names, choice.out, columns, run)


def explain_latents(question: Question, choice: ExplainChoice, run: Run) -> None:
    """Prints which latents affect which columns, and writes a file or a figure on request."""
    if choice.out is not None:
        check_out(choice.out, (".csv", ".parquet", ".png"), question=question)
    chosen = selection_of(question, run)
    effects = chosen.vae.explain(chosen.rows, seed=run.seed)
    run.say(f"{chosen.title}\n{effects.summary()}")
    if choice.out is None:
        return
    if choice.out.suffix == ".png":
        with whole_file(choice.out) as new:
            new.write_bytes(png(effects.plot()))
        run.say(f"wrote {choice.out}")
    else:
        frame = effects.to_dataframe()
        write(choice.out, {name: frame[name].tolist() for name in frame}, run)


def write_report(question: Question, choice: ReportChoice, run: Run) -> None:
    """Writes a page on a saved model and some rows: the results, and how far to trust them."""
    check_out(choice.out, (".html",), question=question)
    chosen = selection_of(question, run)
    page = _page(chosen, question, choice, run)
    with whole_file(choice.out) as new:
        new.write_text(page.html(), encoding="utf-8")
    run.say(f"wrote {choice.out}")


def _page(chosen: Selection, question: Question, choice: ReportChoice, run: Run) -> Report:
    """Computes the report on the chosen rows."""
    notes = storage.read_about(question.folder)
    subject = Subject(
        chosen.vae,
        chosen.rows,
        chosen.title,
        chosen.names,
        chosen.seen,
        heading=f"Results of '{question.folder}' on {chosen.title.split(':')[0]}",
        ranging=_ranging(chosen, question).rows,
        training=str(notes.get("converged", "")),
        facts={"data": str(notes.get("data set", ""))},
        commands=[str(notes.get("command", "")), run.typed],
    )
    how: dict[str, Any] = {"seed": run.seed, "progress": run.progress}
    return report_of(subject, choice.samples, choice.reference, **how)


def _ranging(chosen: Selection, question: Question) -> Selection:
    """Returns the rows whose embeddings set the range of each latent: the held-out rows, if known.

    Rows that the user passes could be outliers, which would widen the range.
    """
    try:
        return selection_of(replace(question, data=None), Run(quiet=True))
    except (OSError, TypeError, ValueError):  # no file, other columns, or no row left
        return chosen


def sample_saved(choice: SampleChoice, run: Run) -> None:
    """Writes draws from p(y) of a saved model, with the names, units and categories of the data."""
    if choice.out is not None:
        require_file_place(choice.out)
    vae = TableVAE.load(choice.folder)
    endings, is_table = _endings(vae.units), isinstance(vae.units, Columns)
    has_names = is_table and vae.units.named
    out = choice.out or Path(f"draws{endings[0]}")
    if out.suffix not in endings:
        why = f"the columns have names ({vae.units}), so the " if has_names else "the "
        raise ValueError(
            f"{why}file of draws must have a name that ends in {' or '.join(endings)}; got '{out}'"
        )
    check_out(out, endings, question=Question(choice.folder))
    draws = vae.sample(choice.number, seed=run.seed)
    which = DataChoice(**_about(choice.folder)["data"])
    if not is_table and which.binarize in (None, "none"):
        draws = draws * which.divide_by  # grey levels as the file has them
    if out.suffix == ".npy":
        columns = columns_of(draws).values() if is_table else ()
        numbers = np.stack([raw.values for raw in columns], axis=1) if is_table else draws
        with whole_file(out) as new:
            np.save(new, np.asarray(numbers))
    elif has_names:
        write(out, lists_of(draws), replace(run, quiet=True))
    else:
        values = torch.as_tensor(draws).flatten(start_dim=1).numpy()
        names = None if isinstance(vae.units, Columns) else vae.units.feature_names
        with whole_file(out) as new:
            write_csv(new, [names] if names else [])
            with new.open("a", newline="", encoding="utf-8") as file:
                np.savetxt(file, values, delimiter=",")
    run.say(f"wrote {count_of(choice.number, 'draw')} to {out}")


def _endings(units: Columns | Scaling) -> tuple[str, ...]:
    """Returns the endings that the name of a file of draws may have; the first is the default.

    Draws that contain words cannot be saved in npy files.
    """
    if not isinstance(units, Columns) or not units.named:
        return ".npy", ".csv"
    return (".csv", ".parquet", ".npy") if units.numeric else (".csv", ".parquet")


def _about(folder: Path) -> dict[str, Any]:
    """Reads the notes that the command line saved with a model; refuses a model without them."""
    about = storage.read_about(folder)
    data, known = about.get("data"), {entry.name for entry in fields(DataChoice)}
    if not (isinstance(data, dict) and isinstance(data.get("data"), str) and set(data) <= known):
        raise ValueError(
            f"'{folder}' was not saved by the command line, so pyro_vae does not know how its data "
            "were preprocessed: call pv.TableVAE.load in Python"
        )
    return about


def check_out(
    path: Path, endings: Sequence[str] = (".csv", ".parquet"), *, question: Question
) -> None:
    """Refuses a path that cannot be written, or that holds the rows or the training data."""
    if path.suffix not in endings:
        raise ValueError(
            f"the file of results must have a name that ends in {' or '.join(endings)}; got "
            f"'{path}'"
        )
    for module in _NEEDED.get(path.suffix, ()):
        optional(module, needed_for=f"'{path}'")
    require_file_place(path)
    for name in (question.data, _about(question.folder)["data"]["data"]):
        if name is not None and path.exists() and Path(name).exists() and path.samefile(name):
            raise ValueError(
                f"'{path}' holds the rows, and the results would replace this file: choose another "
                "name for the results"
            )


def write_beside(
    names: Mapping[str, Sequence[object]], path: Path, columns: Mapping[str, Entries], run: Run
) -> None:
    """Writes the columns that identify the rows, followed by the results for these rows."""
    write(path, {**_renamed(names, columns), **columns}, run)


def write(path: Path, columns: Mapping[str, Entries], run: Run, *, index: Any = None) -> None:
    """Writes a csv or parquet file from named columns and, if given, the index of a table."""
    lists = {
        name: [_rounded(value) for value in values.tolist()]
        if isinstance(values, Tensor | np.ndarray)
        else list(values)
        for name, values in columns.items()
    }
    with whole_file(path) as new:
        if path.suffix == ".parquet":
            plain = {name: _of_one_type(entries) for name, entries in lists.items()}
            optional("pandas", needed_for="parquet").DataFrame(plain, index=index).to_parquet(new)
        else:
            lists = {**_labels(index), **lists}
            rows = zip(*lists.values(), strict=True)
            cells = [["" if is_gone(value) else value for value in row] for row in rows]
            write_csv(new, [[*lists], *cells])
    run.say(f"wrote {path}")


def _of_one_type(entries: list[object]) -> list[object]:
    """Converts entries of several types to strings, because a column of parquet has one type."""
    kinds = {
        float if isinstance(entry, float | np.number) or type(entry) is int else type(entry)
        for entry in entries
        if not is_gone(entry)
    }
    if len(kinds) < 2:
        return entries
    return [None if is_gone(entry) else str(entry) for entry in entries]


def _rounded(value: object) -> object:
    """Rounds a float to 8 significant digits; returns any other value unchanged."""
    return float(f"{value:.8g}") if isinstance(value, float) else value
