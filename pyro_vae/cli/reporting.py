"""The report on a saved model: the answer first, then the details behind it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .. import __version__, storage
from ..comparisons.reporting import typeset_numbers
from ..data import Columns
from ..evidence import ImportanceSampling, LogMarginal
from ..queries import Explanation, Outliers
from ..report import (
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
    words,
)
from ..writing import whole_file
from .options import Question, ReportChoice, Run
from .questions import Asked, asked, check_out, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_LISTED = 15  # outliers
_SIZE = (4.8, 3.6)  # inches of the first picture: half a page, and what a phone can show
_NAME = Column("row", "row", "Identifies the row: its position in the file, counted from 0, "
               "and the columns that were left out of the model.", is_number=False)  # fmt: skip
_OUTLYING = (
    Column("p_value", "p", "Share of data simulated from the model whose log density is as low, "
           "scored with the same entries missing. At a false discovery rate of 5%, on average at "
           "most one in 20 flagged rows is not an outlier (Benjamini and Hochberg)."),
    Column("log_p", "log p", "Log density of the row under the model, in the data's own units.",
           "nats"),
    Column("flagged", "flagged", "Whether it is flagged as an outlier.", is_number=False),
)  # fmt: skip
_COLUMN = Column("column", "column", "A column of the table.", is_number=False)
_COLUMNS = (
    Column("kind", "taken for", "Kind of its entries; override with --kinds.", is_number=False),
    Column("missing", "missing", "Share of missing entries in these rows."),
)


def write_report(question: Question, choice: ReportChoice, run: Run, command: str) -> None:
    """One page on a saved model and some rows: results, and how far to trust them."""
    check_out(choice.out, (".html",))
    about = asked(question, run)
    page = _report(about, question, choice, run, command)
    with whole_file(choice.out) as new:
        new.write_text(page.html(), encoding="utf-8")
    run.say(f"wrote {choice.out}")


def _report(
    about: Asked, question: Question, choice: ReportChoice, run: Run, command: str
) -> Report:
    how: dict[str, Any] = {"seed": run.seed, "progress": run.progress}
    ranging = _ranging(about, question)
    _, log_p = about.vae.evaluate(about.rows, ImportanceSampling(choice.samples), **how)
    found = about.vae.outliers(about.rows, choice.reference, **how)
    told = about.vae.explain(ranging.rows, seed=run.seed)
    notes = storage.read_about(question.folder)
    sections = [
        Section("Which latent does what", _latents(ranging, told, run)),
        Section("Rows that are unusual under the model", _outliers(about, found)),
        *_missing(about, run),
        Section("Columns", [_columns(about)]),
        Section("To repeat it", _repeat(notes, command)),
    ]
    return Report(
        f"Results of '{question.folder}' on {about.title.split(':')[0]}",
        f"{about.title}. ± is one standard error.",
        sections,
        Lead(_answer(log_p, found, told, notes), _effects(told)),
    )


def _ranging(about: Asked, question: Question) -> Asked:
    """Rows that set the range of the latents: held-out ones, since new ones may be outliers."""
    try:
        return asked(replace(question, data=None), Run(quiet=True))
    except (FileNotFoundError, ValueError):  # the file has gone, or all of its rows were trained on
        return about


def _answer(log_p: LogMarginal, found: Outliers, told: Explanation, notes: Any) -> str:
    """The findings, what cannot be trusted and why, and how training ended."""
    size, reference = len(log_p), len(found.reference)
    lowest = int((found.value * (reference + 1) <= 1).sum())
    heard = [told.latents[place] for place in told.telling]
    flagged = int(found.flagged().sum())
    few = (
        f" ({lowest} lie beyond all {reference} reference data: more reference data could flag "
        "these)"
        if lowest > flagged
        else ""
    )
    bad = int((~log_p.reliable).sum())
    trust = (
        f"Log p cannot be trusted for {bad} of {size} rows ({log_p.reasons})."
        if bad
        else f"Log p passes every check for all {size} rows."
    )
    said = [
        f"{len(heard)} of {len(told.latents)} latents carry information, {heard[0]} most."
        if heard
        else "No latent carries information: the model has learned no structure.",
        f"{flagged} of {size} rows are outliers, at a false discovery rate of 5%{few}.",
        f"Half of the rows have a log p above {float(log_p.value.median()):.2f} nats, in the "
        "data's own units.",
        trust,
        f"Training: {notes['converged']}." if "converged" in notes else "",
    ]
    return typeset_numbers(" ".join(said))


def _effects(told: Explanation) -> Figure:
    return Figure(
        png(_figure(told.plot(), _SIZE)),
        "A heat map with a row per latent and a cell per column; the numbers are in the section "
        "on latents",
        "How far each column moves as a latent goes through its range in the data.",
        "Which latents affect which columns.",
    )


def _latents(about: Asked, told: Explanation, run: Run) -> list[Block]:
    *lines, rule = told.summary().splitlines()
    blocks: list[Block] = [
        Points([_split(typeset_numbers(line)) for line in lines]),
        Text(rule, "How to read it:"),
    ]
    if isinstance(about.vae.units, Columns):
        grid = about.vae.traverse(about.rows, seed=run.seed).plot()
        caption = (
            "Decoded means along each latent, with the others at 0, in the columns' own units."
        )
        alt = "A panel for each latent and each of the columns that move most"
        blocks.append(Figure(png(grid[0, 0].figure), alt, caption, "Along the latents."))
    return blocks


def _split(line: str) -> tuple[str, str]:
    """A line of the summary, split into subject and statement."""
    name, between, rest = line.partition(" nats: ")
    return (f"{name}{between.rstrip(': ')}:", rest) if between else ("", line)


def _outliers(about: Asked, found: Outliers) -> list[Block]:
    flagged, rows = found.flagged(), found.most_extreme(_LISTED).tolist()
    cells = [
        [
            words(", ".join(str(values[place]) for values in about.names.values())),
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
    note = f"Rows are identified by {', '.join(about.names)}. {found.summary()}."
    axes = found.plot()
    picture = Figure(
        png(axes[0].figure),
        "Log densities of the rows and of data simulated from the model, and sorted tail "
        "probabilities",
        "Ordinary rows follow the diagonal; outliers form a flat stretch at the left; a model "
        "that does not fit bends the whole curve.",
        "Rows among data simulated from the model.",
    )
    return [Table("The most unusual rows", [_NAME, *_OUTLYING], cells, note), picture]


def _missing(about: Asked, run: Run) -> list[Section]:
    """Imputed values, if some entries are missing."""
    rows = about.vae.rows(about.rows)
    if not isinstance(about.vae.units, Columns) or not bool(rows.isnan().any()):
        return []
    filled = about.vae.impute(about.rows, seed=run.seed, progress=run.progress)
    bad = int((~filled.reliable).sum())
    said = (
        f"{int(filled.missing.sum())} entries are missing. The intervals are valid if missingness "
        "does not depend on the missing values, given the observed ones. "
        + (f"{bad} rows cannot be trusted ({filled.reasons})." if bad else "")
    )
    picture = Figure(
        png(filled.plot()[0].figure),
        "A panel for each column with missing entries",
        "Observed entries in grey; imputed ones with the middle 95% of their draws; for "
        "categories the size of a dot is their share.",
        "What is missing.",
    )
    return [Section("Missing entries", [Text(said), picture])]


def _columns(about: Asked) -> Block:
    if not isinstance(about.vae.units, Columns):
        return Text("The data are not a table of columns.")
    missing = about.vae.rows(about.rows).isnan().double().mean(dim=0).tolist()
    rows = [
        [words(name), words(type(kind).__name__), number(share, f"{share:.0%}")]
        for (name, kind), share in zip(about.vae.units.kinds.items(), missing, strict=True)
    ]
    return Table("How the columns were interpreted", [_COLUMN, *_COLUMNS], rows)


def _repeat(notes: Any, command: str) -> list[Block]:
    lines = "\n".join([str(notes.get("command", "")), command])
    return [Code(lines), Facts({"pyro-vae": __version__, "data": str(notes.get("data set", ""))})]


def _figure(ax: Any, size: Sequence[float]) -> "Drawing":
    drawing: Drawing = ax.figure
    drawing.set_size_inches(size[0], size[1])
    return drawing
