"""The report on a model of a table: the main findings first, then the details."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from . import __version__
from .data import Columns
from .defaults import wide_sampling
from .formatting import count_of, every_datum
from .plots.drawing import figure_of
from .queries import Explanation, Outliers
from .report import (
    Block,
    Code,
    Column,
    Facts,
    Figure,
    Lead,
    Points,
    Report,
    Section,
    Table,
    Text,
    estimate,
    number,
    png,
    typeset_numbers,
    words,
)

_LISTED = 15  # rows in the table of unusual rows
_NAMED = 3  # outliers that the main findings name
_SIZE = (4.8, 3.6)  # size of the first picture in inches: half a page wide, and fits a phone
_NAME = Column(
    "row",
    "row",
    "Identifies the row: its position in the table (counted from 0), its index, and its entries in "
    "the columns that were left out of the model, except constant columns.",
    is_number=False,
)
_OUTLYING = (
    Column(
        "p_value",
        "p",
        "Share of simulated data whose log density is at most that of the row. The data are "
        "simulated from the model, with the same entries missing as in the row. At a false "
        "discovery rate of 5%, on average at most one in 20 flagged rows is not an outlier "
        "(Benjamini and Hochberg).",
    ),
    Column(
        "log_p", "log p", "Log density of the row under the model, in the data's own units.", "nats"
    ),
    Column("flagged", "flagged", "Whether the row is flagged as an outlier.", is_number=False),
)
_COLUMN = Column("column", "column", "A column of the table.", is_number=False)
_COLUMNS = (
    Column(
        "kind",
        "taken for",
        "Kind of the column; the argument kinds (command line: --kinds) overrides it. Draws of "
        "Real and Time columns are Gaussian around the decoded mean, so they can lie beyond "
        "possible values, such as below 0. Draws of Positive and Count columns cannot.",
        is_number=False,
    ),
    Column("missing", "missing", "Share of missing entries in these rows."),
)


@dataclass(frozen=True)
class Subject:
    """The model and the rows that a report is about.

    Arguments:
        vae: A :class:`pyro_vae.TableVAE`.
        rows: A table with the columns that `vae` was trained on; the held-out rows if None.
        title: Which rows these are, and how many, in words.
        names: Entries of the columns that identify the rows, by the column's name.
        seen: How many of the rows the model was trained on, as far as is known.
        heading: Title of the page.
        ranging: Rows whose embeddings give the range of each latent; the training rows if None.
        training: How training ended, in a sentence; empty if it is not known.
        facts: Facts needed to repeat the analysis, by name.
        commands: Commands that repeat the analysis, to be copied from the page.
    """

    vae: Any
    rows: Any
    title: str
    names: Mapping[str, Sequence[Any]]
    seen: int = 0
    heading: str = "A model of a table"
    ranging: Any = None
    training: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def report_of(
    about: Subject,
    num_samples: int = 1000,
    reference: int = 1000,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Makes a page on a model and some rows: results, and how far to trust them.

    Arguments:
        about: The model and the rows.
        num_samples: Importance samples per datum.
        reference: Number of rows to simulate, with which outliers are compared.
        seed: Seed of all draws.
        progress: Whether to show progress bars.
    """
    how: dict[str, Any] = {"seed": seed, "progress": progress}
    wide = wide_sampling(about.vae.model.latent_dim, num_samples)
    with warnings.catch_warnings():  # the page itself says which rows are in doubt, and why
        warnings.filterwarnings("ignore", r"log p\(y\) cannot be trusted", UserWarning)
        log_p = about.vae.log_marginal_likelihood(about.rows, wide, **how)
    # Outliers are found with fewer draws. The page shows the log p from more draws everywhere.
    found = replace(about.vae.outliers(about.rows, reference, **how), log_p=log_p)
    explanation = about.vae.explain(about.ranging, seed=seed)
    sections = [
        Section("Which latent does what", _latents(about, explanation, seed)),
        Section("Rows that are unusual under the model", _outliers(about, found)),
        *_missing(about, how),
        Section("Columns", [_columns(about)]),
        Section("To repeat it", _repeat(about)),
    ]
    lead = Lead(_answer(about, found, explanation), _effects(explanation))
    return Report(about.heading, f"{about.title}. ± is one standard error.", sections, lead)


def identifying(names: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
    """Returns the first column and all columns that vary; if there is only one row, all columns."""
    return {
        name: values
        for place, (name, values) in enumerate(names.items())
        if place == 0 or len(values) == 1 or len({str(value) for value in values}) > 1
    }


def _answer(about: Subject, found: Outliers, explanation: Explanation) -> str:
    """Writes the findings, what cannot be trusted and why, and how training ended."""
    log_p = found.log_p
    rows = count_of(len(log_p), "row")
    informative = [explanation.latents[place] for place in explanation.telling]
    carried = (
        f"Information is carried by {len(informative)} of "
        f"{count_of(len(explanation.latents), 'latent')}, most of it by {informative[0]}."
        if informative
        else "No latent carries information: the model has learned no structure."
    )
    flagged, lowest = int(found.flagged().sum()), int(found.beyond.sum())
    most = max(flagged, lowest)
    examples = "; ".join(
        _named(about, place) for place in found.most_extreme(_NAMED)[:most].tolist()
    )
    examples += ", ..." * (most > _NAMED)
    if lowest > flagged:
        lie, them = ("lies", "it") if lowest == 1 else ("lie", "them")
        examples += (
            f" {lie} beyond all {count_of(int(found.compared.max()), 'reference datum')}, which "
            f"are too few to flag {them}: repeat this with a reference of "
            f"{count_of(found.enough(), 'datum')}"
        )
    bad = int((~log_p.reliable).sum())
    sentences = [
        carried,
        f"Outliers: {flagged} of {rows}, at a false discovery rate of 5%"
        f"{f' ({examples})' * (most > 0)}.",
        f"Half of the rows have a log p above {float(log_p.value.median()):.2f} nats, in the "
        "data's own units.",
        f"Log p cannot be trusted for {bad} of {rows} ({log_p.reasons})."
        if bad
        else f"Log p passes every check for {every_datum(len(log_p), 'row')}.",
        _of_training_rows(about.seen, len(log_p)),
        f"Training: {about.training}." if about.training else "",
    ]
    return typeset_numbers(" ".join(sentences))


def _of_training_rows(seen: int, size: int) -> str:
    """Says how many of the rows the model was trained on; "" if none, or if this is not known."""
    if not seen:
        return ""
    return (
        f"The model was trained on {seen:,} of these {count_of(size, 'row', ',')}, and fits them "
        "better than new rows: their log p is too high, and they are flagged too seldom."
    )


def _named(about: Subject, place: int) -> str:
    """Returns the entries that identify a row, as text."""
    return ", ".join(str(values[place]) for values in identifying(about.names).values())


def _effects(explanation: Explanation) -> Figure:
    """Draws the picture beside the main findings."""
    ax = explanation.plot()
    figure_of(ax).set_size_inches(*_SIZE)
    return Figure(
        png(ax),
        "A heat map with a row per latent and a cell per column; the numbers are in the section "
        "on latents",
        "How far the mean of each column moves as a latent goes through its range in the data.",
        "Which latents affect which columns.",
    )


def _latents(about: Subject, explanation: Explanation, seed: int) -> list[Block]:
    """Makes the section on latents: their effects in words, and decoded means along each one."""
    *lines, rule = explanation.summary().splitlines()
    blocks: list[Block] = [
        Points([_split(typeset_numbers(line)) for line in lines]),
        Text(rule, "How to read it:"),
    ]
    if isinstance(about.vae.units, Columns):
        grid = about.vae.traverse(about.ranging, seed=seed).plot()
        caption = (
            "Decoded means along each latent, with the other latents at 0, in the columns' units."
        )
        alt = "A panel for each latent and each of the columns that move most"
        blocks.append(Figure(png(grid), alt, caption, "Along the latents."))
    return blocks


def _split(line: str) -> tuple[str, str]:
    """Splits a line such as `z[0]: 1.2 nats: age` after the nats, into subject and statement."""
    name, between, rest = line.partition(" nats: ")
    return (f"{name}{between.rstrip(': ')}:", rest) if between else ("", line)


def _outliers(about: Subject, found: Outliers) -> list[Block]:
    """Makes the section on unusual rows: a table of the most unusual ones, and a picture."""
    flagged, rows = found.flagged(), found.most_extreme(_LISTED).tolist()
    names = identifying(about.names)
    cells = [
        [
            words(_named(about, place)),
            estimate(float(found.value[place]), float(found.error[place])),
            estimate(
                float(found.log_p.value[place]),
                float(found.log_p.error[place]),
                doubt="; ".join(found.log_p.why_not(place)),
            ),
            words("yes" if flagged[place] else "no"),
        ]
        for place in rows
    ]
    note = f"Rows are identified by {', '.join(names)}. {found.summary()}."
    picture = Figure(
        png(found.plot()),
        "Log densities of the rows and of data simulated from the model, and sorted tail "
        "probabilities",
        "Ordinary rows follow the diagonal; outliers form a flat stretch at the left; a model "
        "that does not fit bends the whole curve.",
        "The rows compared with data simulated from the model.",
    )
    return [Table("The most unusual rows", [_NAME, *_OUTLYING], cells, note), picture]


def _missing(about: Subject, how: dict[str, Any]) -> list[Section]:
    """Makes the section on imputed values; returns an empty list if no entry is missing."""
    rows = about.vae.rows(about.rows)
    if not isinstance(about.vae.units, Columns) or not bool(rows.isnan().any()):
        return []
    filled = about.vae.impute(about.rows, **how)
    bad, holed = int((~filled.reliable).sum()), int(filled.missing.flatten(1).any(dim=1).sum())
    text = (
        f"Missing entries: {int(filled.missing.sum())}, in {count_of(holed, 'row')}. "
        "The intervals are valid if missingness does not depend on the missing values, given the "
        "observed ones. "
        + (
            f"The draws for {bad} of these rows cannot be trusted ({filled.reasons})."
            if bad
            else "The draws pass every check."
        )
    )
    picture = Figure(
        png(filled.plot()),
        "A panel for each column with missing entries",
        "Observed entries in grey; imputed entries with the middle 95% of their draws. For "
        "categories, the size of a dot is a category's share of the draws.",
        "What is missing.",
    )
    return [Section("Missing entries", [Text(text), picture])]


def _columns(about: Subject) -> Block:
    if not isinstance(about.vae.units, Columns):
        return Text("The data are not a table of columns.")
    missing = about.vae.rows(about.rows).isnan().double().mean(dim=0).tolist()
    rows = [
        [words(name), words(type(kind).__name__), number(share, f"{share:.0%}")]
        for (name, kind), share in zip(about.vae.units.kinds.items(), missing, strict=True)
    ]
    return Table("How the columns were interpreted", [_COLUMN, *_COLUMNS], rows)


def _repeat(about: Subject) -> list[Block]:
    commands: list[Block] = [Code("\n".join(about.commands))] if about.commands else []
    return [*commands, Facts({"pyro-vae": __version__, **about.facts})]
