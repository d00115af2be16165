"""The report of one or more comparisons: results, how far to trust them, how to repeat the runs."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .._types import Estimate
from ..criticism import PairedDifference
from ..formatting import count_of, every_datum
from ..report import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Heading,
    Lead,
    Points,
    Report,
    Section,
    Table,
    Text,
    estimate,
    number,
    typeset_numbers,
    words,
)
from .columns import (
    EVIDENCE,
    GUIDE,
    LATENTS,
    TRUST,
    Entry,
    Reported,
    Share,
    columns_of,
    is_known,
    plain,
)
from .results import Difference, GuideResult, best_of, ignores_data, rivals_of

if TYPE_CHECKING:
    from .comparison import Comparison

_LEADING = "comparison"  # the picture at the head of the page
_LONGEST_FACT = 240  # letters; longer facts are shortened here, and complete in run.json
_SHOWN_ELSEWHERE = {"command", "progress", "seed", "train_model"}


def title_of(table: "Comparison") -> str:
    """Returns a title that says whether each guide trained its own model."""
    return "Every guide with its own model" if table.trained_model else "One model, fixed"


def report_of(tables: "Mapping[str, Comparison]") -> Report:
    """Builds a page: the findings, a section for each comparison, and how to repeat the run.

    Arguments:
        tables: The comparisons, by their titles.
    """
    first = next(iter(tables.values()))
    findings: list[Block] = []
    for title, table in tables.items():
        trust = Text(" ".join(_trust(table.results)), "How far to trust it:")
        findings += [Heading(title), Points(_verdict(table)), trust]
    sections = [
        Section("What was found", [*findings, Text(_errors(first))]),
        *(Section(title, _details(table, leads=table is first)) for title, table in tables.items()),
        Section("To repeat it", _repeat(tables)),
    ]
    guides = ", ".join(first.results)
    data = first.about.get("data set", count_of(len(first.test[0]), "held-out row"))
    return Report("Guides side by side", f"{guides}. Data: {data}.", sections, _lead(first))


def _lead(table: "Comparison") -> Lead:
    """Says which guide to use, its gap, whether log p is reliable, and how training ended."""
    name = best_of(table.results, train_model=table.trained_model)
    (ranked,) = (row for row in table.rows() if row.guide == name)
    best = table.results[name]
    size, doubted = len(best.means), best.untrusted.log_p
    rivals = rivals_of(table.results, train_model=table.trained_model)
    alike = " or ".join(f"'{rival.name}'" for rival in rivals if not rival.is_significant)
    sentences = [
        f"Use '{name}': its model has the highest held-out log p, "
        f"{ranked.estimate('log_p')} nats per datum, and its inference gap is "
        f"{best.gap.mean.inference} nats."
        if table.trained_model
        else (
            f"Use '{name}': its held-out ELBO is the highest, and its inference gap is "
            f"{best.gap.mean.inference} nats per datum."
        ),
        "Under this guide, z carries no information about a datum, "
        "so embeddings of the data say nothing."
        if table.trained_model and ignores_data(best)
        else "",
        f"This guide cannot be distinguished from {alike} on {every_datum(size)}." if alike else "",
        f"Log p cannot be trusted for {doubted} of {count_of(size, 'datum')}{_reasons(best)}."
        if doubted
        else f"Log p passes every check for {every_datum(size)}.",
        f"Training: {best.fit.promise}.",
    ]
    drawn = table.pictures.get(_LEADING)  # there is none without matplotlib
    picture = None if drawn is None else _figure(_LEADING, drawn, ", ".join(table.results))
    return Lead(typeset_numbers(" ".join(filter(None, sentences))), picture)


def _verdict(table: "Comparison") -> list[tuple[str, str]]:
    """Splits each line of the verdict into a guide's name, such as "amortized:", and a text.

    The name is empty if the line does not start with the name of a guide.
    """
    points = []
    for line in typeset_numbers(table.verdict).splitlines():
        names = [f"{name}:" for name in table.results if line.startswith(f"{name}: ")]
        subject = max(names, key=len, default="")
        points.append((subject, line.removeprefix(subject).lstrip()))
    return points


def _trust(results: Mapping[str, GuideResult]) -> list[str]:
    """Returns sentences on results that cannot be trusted, or says that all can be trusted."""
    doubts = [
        f"{name}: {'; '.join(_doubts(one))}." for name, one in results.items() if _doubts(one)
    ]
    size = max(len(one.means) for one in results.values())
    fine = (
        f"log p(y) passes every check for {every_datum(size, 'held-out datum')} under every "
        "guide, and the best q of the family was found for each datum."
    )
    return [*(doubts or [fine]), _coverage(results, size)]


def _doubts(result: GuideResult) -> list[str]:
    """Returns the doubts about the numbers of a guide, in words."""
    size, doubts = len(result.means), []
    doubted, lost, negative, tailed = result.untrusted
    if doubted:
        doubts.append(
            f"log p(y) cannot be trusted for {doubted} of {count_of(size, 'datum')}"
            f"{_reasons(result)}"
        )
    if lost:
        doubts.append(
            f"the best q of the family was not found for {lost} of {count_of(size, 'datum')}, so "
            "the approximation and amortization gaps of these data are wrong"
        )
    if negative:
        doubts.append(
            f"a gap is negative by more than its error for {negative} of "
            f"{count_of(size, 'datum')}, because the estimate of their log p(y) is too low"
        )
    if tailed:
        reasons = ", ".join(doubt.value for doubt, m in result.elbo_doubts.items() if m.any())
        doubts.append(
            f"the ELBO cannot be trusted for {tailed} of {count_of(size, 'datum')} ({reasons})"
        )
    if result.fit.stopped == "interrupted":
        doubts.append("training was interrupted")
    if result.fit.converged is False:
        doubts.append(result.fit.promise)
    return doubts


def _coverage(results: Mapping[str, GuideResult], size: int) -> str:
    """Says which guides cover posteriors only in part, and how log p was estimated."""
    methods = ", ".join(dict.fromkeys(one.gap.log_marginal.method for one in results.values()))
    counts = {name: one.partly_covered for name, one in results.items()}
    partly = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
    if not partly:
        return f"Every guide covers every posterior. Log p(y) was estimated by {methods}."
    return (
        f"Posteriors that a guide covers only in part, out of {size}: {partly}. "
        f"Log p(y) was estimated by {methods}."
    )


def _reasons(result: GuideResult) -> str:
    reasons = result.gap.log_marginal.reasons
    return f" ({reasons})" if reasons else ""


def _errors(table: "Comparison") -> str:
    """Says what the errors after ± include, and what they do not include."""
    seeds = len(table.complete)
    again = (
        "With one seed, it is unknown how much numbers change with another training run"
        if seeds < 2
        else f"The spread between {seeds} seeds shows how much numbers change with another run"
    )
    return (
        "± is one standard error due to the random draws, for these held-out data. An error "
        f"marked 'over data' also includes the error due to the sample of held-out data. {again}."
    )


def _details(table: "Comparison", *, leads: bool) -> list[Block]:
    """Returns all texts, tables and pictures of a comparison, except the page's first picture."""
    ceiling = table.rows()[0].number("ceiling")
    tables = [
        _table(
            table,
            EVIDENCE,
            "What inference costs",
            "Means in nats per datum, over held-out data unless marked as training. Log p = ELBO "
            "+ approximation gap + amortization gap.",
        ),
        _table(
            table,
            LATENTS,
            "What the latents carry, and what training took",
            f"Mutual information is at most log N = {ceiling:.2f} nats.",
        ),
        _table(table, TRUST, "How far the numbers can be trusted"),
    ]
    if len(table.results) > 1:
        tables.insert(1, _differences(table))
    names = ", ".join(table.results)
    return [
        Text(_comparability(table)),
        *tables,
        *(
            _figure(name, picture, names)
            for name, picture in table.pictures.items()
            if not (leads and name == _LEADING)
        ),
    ]


def _table(table: "Comparison", which: str, title: str, note: str = "") -> Table:
    """Returns one of the tables of the page, with one row per guide."""
    columns = [GUIDE, *columns_of(which, table.rows())]
    rows = [[cell_of(column, Entry(name, table)) for column in columns] for name in table.results]
    return Table(title, columns, rows, note)


def _comparability(table: "Comparison") -> str:
    if table.trained_model:
        return (
            "Every guide trained its own copy of the model, from the same initialization. So only "
            "log p can be compared between guides: ELBO and gaps depend on the guide's own model."
        )
    return "The model is fixed, and only inference differs. So ELBOs can be compared, too."


def cell_of(column: Reported, entry: Entry) -> Cell:
    """Returns the cell of the table that shows a column's value for a guide."""
    value, note, doubt = column.of(entry), column.note(entry), column.doubt(entry)
    if isinstance(value, Estimate):
        return estimate(float(value.value), float(value.error), note=note, doubt=doubt)
    if isinstance(value, Share):
        return number(plain(value), f"{value.number} of {value.size}", note=note)
    if isinstance(value, str):
        return words(value)
    return number(value, f"{value:{column.spec}}" if is_known(value) else "", note=note)


@dataclass(frozen=True, kw_only=True)
class _OfPair(Column):
    """A column of the table of pairs of guides.

    Arguments:
        cell: Makes the cell of a pair.
        of_models: Whether the column compares the guides' models; such a column is left out if the
            model is fixed.
    """

    cell: Callable[[Difference], Cell]
    of_models: bool = False


def _mean(by_datum: PairedDifference) -> Cell:
    """Returns a table cell with the mean of a difference, and the error over data of this mean."""
    mean = by_datum.mean
    note = f"Of the error, {float(mean.error):.2g} comes from the draws"
    return estimate(float(mean.value), float(mean.population_error), note=note)


def _higher(by_datum: PairedDifference) -> Cell:
    """Returns a table cell with the share of the data for which a difference is positive."""
    above, size = int((by_datum.value > 0).sum()), len(by_datum.value)
    return number(above / size, f"{above / size:.0%}", note=f"{above} of {count_of(size, 'datum')}")


_PAIRS = (
    _OfPair(
        key="pair",
        name="guides",
        definition="The first guide minus the second guide, datum by datum.",
        is_number=False,
        cell=lambda one: words(f"{one.first} \N{MINUS SIGN} {one.second}"),
    ),
    _OfPair(
        key="elbo_difference",
        name="ELBO difference",
        definition=(
            "Mean over held-out data of the first guide's ELBO minus the second's. The "
            "error is over data: it says how much the mean would change with other "
            "held-out data. Because both guides saw the same data, this error is usually "
            "smaller than the error of either guide's ELBO."
        ),
        unit="nats",
        cell=lambda one: _mean(one.elbo),
    ),
    _OfPair(
        key="elbo_share",
        name="ELBO higher",
        definition="Share of held-out data on which the first guide has the higher ELBO.",
        cell=lambda one: _higher(one.elbo),
    ),
    _OfPair(
        key="log_p_difference",
        name="log p difference",
        definition=(
            "Mean over held-out data of log p(y) under the first guide's model minus log p(y) "
            "under the second guide's model. The error is over data."
        ),
        unit="nats",
        cell=lambda one: _mean(one.log_p),
        of_models=True,
    ),
    _OfPair(
        key="log_p_share",
        name="log p higher",
        definition="Share of held-out data on which the first guide's model has the higher log p.",
        cell=lambda one: _higher(one.log_p),
        of_models=True,
    ),
)


def _differences(table: "Comparison") -> Table:
    columns = [column for column in _PAIRS if table.trained_model or not column.of_models]
    return Table(
        "Differences between guides, datum by datum",
        columns,
        [[column.cell(one) for column in columns] for one in table.differences()],
        "± is one standard error over the held-out data; it includes the error of the draws.",
    )


# Title, caption and alternative text, by the figure's name.
_FIGURES = {
    "learning_curves": (
        "Training.",
        "ELBO of the training data by epoch.",
        "Lines, one per guide: ELBO in nats per datum against the epoch",
    ),
    "comparison": (
        "ELBO and log p.",
        "Held-out data, ± one standard error. log p minus the ELBO is the inference gap.",
        "A dot with an error bar for the ELBO and one for log p; the table above has the numbers",
    ),
    "gaps": (
        "The two gaps.",
        "What the family costs (approximation gap), and what the map costs (amortization gap).",
        "A dot with an error bar for each gap; the table above has the numbers",
    ),
    "pareto_k": (
        "Pareto k by datum.",
        "The larger k, the heavier the tail of the guide's weights; above about 0.7, no practical "
        "number of draws suffices to estimate log p(y).",
        "Points, one per held-out datum, against the limit of 0.7",
    ),
    "reconstructions": (
        "Data, reconstructions and draws.",
        "Some held-out data, and means of p(y | z): at their posterior means, and at draws from "
        "the prior.",
        "A row of data, rows of their reconstructions, and rows of prior draws",
    ),
    "worst": (
        "The largest inference gaps.",
        "The held-out data with the largest inference gaps under each guide, and their "
        "reconstructions.",
        "For each guide, the data with the largest gaps, and their reconstructions",
    ),
    "latent_plane": (
        "Embeddings.",
        "Posterior means of held-out data, by class where classes are known.",
        "Points in the plane of the two latents, one panel per guide",
    ),
}


def _figure(name: str, png: bytes, guides: str) -> Figure:
    plain = name.replace("_", " ").capitalize()
    title, caption, alt = _FIGURES.get(name, (f"{plain}.", "", plain))
    return Figure(png, f"{alt}. Guides: {guides}.", caption, title)


def _repeat(tables: "Mapping[str, Comparison]") -> list[Block]:
    first = next(iter(tables.values()))
    run = first.provenance()
    return [
        Text("One click selects all lines. The file run.json in this folder has more detail."),
        Code(_commands(run)),
        Facts(_facts(tables) | {"versions": _fact({**run["versions"], "python": run["python"]})}),
    ]


def _commands(run: Mapping[str, Any]) -> str:
    """Returns shell lines that install the packages and, if the command is known, repeat it."""
    packages = {name: text for name, text in run["versions"].items() if name != "pyro-vae"}
    # A suffix such as `+cpu` names a build that only some package indexes have.
    pinned = shlex.join(f"{name}=={text.split('+')[0]}" for name, text in packages.items())
    command = run["about"].get("command") or (
        "# called from Python: pyro_vae.compare(model, guides, train, test, ...), settings below"
    )
    return (
        f"# Python {run['python']}, pyro-vae {run['versions']['pyro-vae']}\n"
        f"pip install {pinned}\n{command}"
    )


def _facts(tables: "Mapping[str, Comparison]") -> dict[str, str]:
    """Returns texts on data, model, seed and settings, by name.

    If a setting differs between comparisons, the text lists it for each comparison.
    """
    notes = {title: table.provenance()["about"] for title, table in tables.items()}
    names = dict.fromkeys(
        name for about in notes.values() for name in about if name not in _SHOWN_ELSEWHERE
    )
    facts = {}
    for name in names:
        values = {title: _fact(about.get(name)) for title, about in notes.items()}
        same = len(set(values.values())) == 1
        text = next(iter(values.values())) if same else _fact(values)
        if text:
            facts[name.replace("_", " ")] = text
    first = next(iter(tables.values()))
    seeds = [one.about.get("seed", "unknown") for one in (first, *first.others)]
    return {**facts, "seed": _fact(seeds)}


def _fact(value: object) -> str:
    """Returns a setting as text; an empty text for None."""
    if value is None or value == "None":
        return ""
    if isinstance(value, Mapping):
        pairs = {str(name): _fact(entry) for name, entry in value.items()}
        return "; ".join(f"{name}: {text}" for name, text in pairs.items() if text)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses in memory are of no use
    return text if len(text) <= _LONGEST_FACT else text[:_LONGEST_FACT] + "…"
