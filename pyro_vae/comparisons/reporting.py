"""The report of one or more comparisons: what was found, how far to trust it, how to repeat it."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import stats
from .._types import Estimate
from ..report import (
    Block,
    Cell,
    Code,
    Column,
    Facts,
    Figure,
    Heading,
    Points,
    Report,
    Section,
    Table,
    Text,
    estimate,
    number,
    words,
)
from .differences import Difference
from .results import POOR, GuideResult, Row

if TYPE_CHECKING:
    from .comparison import Comparison

_LONGEST_FACT = 240  # letters; what is longer is in run.json
_SAID_ELSEWHERE = {"command", "progress", "seed", "train_model"}


def save_report(path: Path, tables: "Mapping[str, Comparison]") -> None:
    """Writes one HTML file about comparisons by title, such as one with each model, and one."""
    path.write_text(report_of(tables).html(), encoding="utf-8")


def title_of(table: "Comparison") -> str:
    """What kind of comparison it is, as a title."""
    return "Every guide with a model of its own" if _trained(table) else "One model, fixed"


def report_of(tables: "Mapping[str, Comparison]") -> Report:
    """Comparisons by title, as a page: findings, a section each, and how to repeat them."""
    first = next(iter(tables.values()))
    findings = [block for part in tables.items() for block in _found(*part)]
    sections = [
        Section("What was found", [*findings, Text(_errors(first))]),
        *(Section(title, _details(table)) for title, table in tables.items()),
        Section("To repeat it", _repeat(tables)),
    ]
    guides = ", ".join(first.results)
    data = first.about.get("data set", f"{len(first.test[0])} held-out rows")
    return Report("Guides side by side", f"{guides}. Data: {data}.", sections)


def _trained(table: "Comparison") -> bool:
    return bool(table.about.get("train_model", True))


def _found(title: str, table: "Comparison") -> list[Block]:
    trust = Text(" ".join(_trust(table.results)), "How far to trust it:")
    return [Heading(title), Points(_verdict(table)), trust]


def _verdict(table: "Comparison") -> list[tuple[str, str]]:
    """The lines of the verdict, each with the guide that it is about, if it is about one."""
    points = []
    for line in _typeset(table.verdict).splitlines():
        names = [f"{name}:" for name in table.results if line.startswith(f"{name}: ")]
        subject = max(names, key=len, default="")
        points.append((subject, line.removeprefix(subject).lstrip()))
    return points


def _typeset(text: str) -> str:
    """With the signs of print in place of those of a terminal."""
    return re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text)


def _trust(results: Mapping[str, GuideResult]) -> list[str]:
    """Sentences on what cannot be trusted, or that all can."""
    doubts = [
        f"{name}: {'; '.join(_doubts(one))}." for name, one in results.items() if _doubts(one)
    ]
    size = max(len(one.means) for one in results.values())
    fine = (
        f"for all that can be seen, log p(y) can be trusted for all {size} held-out data under "
        "every guide, and the best q of the family was found for every one."
    )
    return [*(doubts or [fine]), _reach(results, size)]


def _doubts(result: GuideResult) -> list[str]:
    """Reasons for care with the numbers of a guide, in words."""
    size, said = len(result.means), []
    doubted, lost, negative = _untrusted(result)
    if doubted:
        said.append(f"log p(y) cannot be trusted for {doubted} of {size} data{_why(result)}")
    if lost:
        said.append(
            f"the best q of the family was not found for {lost} of {size} data, so their gap is "
            "split wrongly between family and map"
        )
    if negative:
        said.append(
            f"a gap is negative beyond its error for {negative} of {size} data, whose log p(y) is "
            "too low"
        )
    if result.fit.stopped == "interrupted":
        said.append("training was interrupted")
    return said


def _untrusted(result: GuideResult) -> tuple[int, int, int]:
    """Data with log p(y) doubted, with the best q not found, and what only the gaps' sign tells."""
    gap = result.gap
    negative = ~gap.reliable & gap.log_marginal.reliable & gap.converged
    return _count(~gap.log_marginal.reliable), _count(~gap.converged), _count(negative)


def _reach(results: Mapping[str, GuideResult], size: int) -> str:
    """Which guides miss a part of posteriors, and how log p is had all the same."""
    methods = ", ".join(dict.fromkeys(one.gap.log_marginal.method for one in results.values()))
    poor = ", ".join(f"{name} {_poor(one)}" for name, one in results.items() if _poor(one))
    if not poor:
        return f"Every guide reaches all of every posterior (k <= 0.7). Log p(y) is by {methods}."
    return (
        f"Data of whose posterior the guide itself misses a part (k > 0.7), of {size}: {poor}. "
        f"Log p(y) is by {methods}."
    )


def _why(result: GuideResult) -> str:
    reasons = result.gap.log_marginal.reasons
    return f" ({reasons})" if reasons else ""


def _errors(table: "Comparison") -> str:
    """What ± is, and what it does not hold."""
    seeds = len(table.complete)
    again = (
        "how much they would move with another training was not measured (one seed)"
        if seeds < 2
        else f"how much they move with another training is in the spread between {seeds} seeds"
    )
    return (
        "± is one standard error: of other random draws on the same held-out data or, where it "
        f"says over data, of other held-out data; {again}."
    )


def _count(mask: Any) -> int:
    return int(mask.sum())


def _poor(result: GuideResult) -> int:
    """Data whose posterior the guide's own weights do not reach; unknown counts as such."""
    return _count(~(result.test.log_marginal.pareto_k <= POOR))


def _details(table: "Comparison") -> list[Block]:
    rows = table.rows()
    tables = [_evidence(table, rows), _latents(table, rows), _trust_table(table, rows)]
    if len(table.results) > 1:
        tables.insert(1, _differences(table))
    names = ", ".join(table.results)
    return [
        Text(_scope(table)),
        *tables,
        *(_figure(*pair, names) for pair in table.pictures.items()),
    ]


def _scope(table: "Comparison") -> str:
    if _trained(table):
        return (
            "Every guide trained its own copy of the model, from the same start. So only log p "
            "compares the models; an ELBO and its gaps are about the guide's own model."
        )
    return "The model is the same and fixed, only inference differs. So ELBOs compare too."


_GUIDE = Column(
    "guide",
    "guide",
    "A way to find q(z | y), the posterior's approximation.",
    is_number=False,
)
_EVIDENCE = (
    Column(
        "train_elbo",
        "training ELBO",
        "ELBO of the data that were trained on, mean over data. Far above the held-out one, it "
        "tells of overfitting.",
        "nats",
    ),
    Column(
        "elbo",
        "ELBO",
        "Evidence lower bound of held-out data, E_q[log p(y, z) - log q(z | y)], mean over data: "
        "log p(y) less what inference loses. Higher is better.",
        "nats",
    ),
    Column(
        "log_p",
        "log p",
        "Log marginal likelihood log p(y) of held-out data under the model, mean over data, by the "
        "tightest estimator there is. Higher is better.",
        "nats",
    ),
    Column(
        "approximation",
        "approximation gap",
        "Log p(y) less the ELBO of the best q of the guide's family for every datum: what the "
        "family costs.",
        "nats",
    ),
    Column(
        "amortization",
        "amortization gap",
        "ELBO of the best q of the family for every datum, less the guide's: what is lost because "
        "q comes from a map instead. With the approximation gap it adds up to log p - ELBO.",
        "nats",
    ),
)
_SPREAD = (
    Column(
        "log_p_spread",
        "log p, sd of seeds",
        "Standard deviation of log p between runs that differ in nothing but the seed.",
        "nats",
    ),
    Column(
        "elbo_spread",
        "ELBO, sd of seeds",
        "Standard deviation of the ELBO between runs that differ in nothing but the seed.",
        "nats",
    ),
)


def _evidence(table: "Comparison", rows: Sequence[Row]) -> Table:
    spread = _SPREAD if len(table.complete) > 1 else ()
    return Table(
        "What inference costs",
        [_GUIDE, *_EVIDENCE, *spread],
        [
            [
                words(row.guide),
                *(_from_row(row, column, table.results[row.guide]) for column in _EVIDENCE),
                *(
                    number(getattr(row, column.key), f"{getattr(row, column.key):.3f}")
                    for column in spread
                ),
            ]
            for row in rows
        ],
        "Means over held-out data, in nats a datum, unless it says training; "
        "log p = ELBO + approximation gap + amortization gap.",
    )


def _from_row(row: Row, column: Column, result: GuideResult) -> Cell:
    """An estimate of the table's row, marked if it cannot be trusted for some data."""
    value, error = (getattr(row, name) for name in (column.key, f"{column.key}_error"))
    return estimate(value, error, doubt=_cell_doubt(column.key, result))


def _cell_doubt(key: str, result: GuideResult) -> str:
    """What stands against a number, by what it is made of."""
    doubted, lost, negative = _untrusted(result)
    said = []
    if doubted + negative and key in ("log_p", "approximation"):
        said.append(f"log p(y) cannot be trusted for {doubted + negative} data")
    if lost and key in ("approximation", "amortization"):
        said.append(f"the best q of the family was not found for {lost} data")
    return "; ".join(said)


_DIFFERENCES = (
    Column(
        "pair", "guides", "The first of the two less the second, datum by datum.", is_number=False
    ),
    Column(
        "elbo_difference",
        "ELBO difference",
        "Mean over held-out data of the first guide's ELBO less the second's. The error is over "
        "data: how much other held-out data would move it. It is smaller than that of either "
        "mean, since both guides saw the same data.",
        "nats",
    ),
    Column(
        "elbo_share",
        "ELBO higher",
        "Share of held-out data on which the first has the higher ELBO.",
    ),
    Column(
        "log_p_difference",
        "log p difference",
        "The same for log p(y), which compares the models. With the model fixed it is zero but "
        "for Monte Carlo errors.",
        "nats",
    ),
    Column(
        "log_p_share",
        "log p higher",
        "Share of held-out data to which the first gives the higher log p.",
    ),
)


def _differences(table: "Comparison") -> Table:
    fixed = not _trained(table)
    return Table(
        "Differences between guides, datum by datum",
        _DIFFERENCES[: 3 if fixed else 5],
        [_difference(one)[: 3 if fixed else 5] for one in table.differences()],
        "± is one standard error over the held-out data, which holds that of the draws.",
    )


def _difference(one: Difference) -> list[Cell]:
    return [
        words(f"{one.first} \N{MINUS SIGN} {one.second}"),
        *_paired(one.mean_elbo, one.elbo),
        *_paired(one.mean_log_p, one.log_p),
    ]


def _paired(mean: Estimate, by_datum: Estimate) -> tuple[Cell, Cell]:
    """A mean difference, and on what share of the data it is positive."""
    draws = float(stats.mean_over_data(by_datum).error)
    value, error = (float(part) for part in mean)
    above, size = _count(by_datum.value > 0), len(by_datum.value)
    return (
        estimate(value, error, note=f"Of it, {draws:.2g} is the error of the draws"),
        _share(above / size, above, size),
    )


def _share(value: float, count: int, size: int) -> Cell:
    return number(value, f"{value:.0%}", note=f"{count} of {size} data")


_LATENTS = (
    Column(
        "rate",
        "rate",
        "KL(q(z | y) || p(z)), mean over held-out data: what it costs to say z.",
        "nats",
    ),
    Column(
        "distortion",
        "distortion",
        "-E_q[log p(y | z)], mean over held-out data: what is left to say about y once z is "
        "known. ELBO = -distortion - rate.",
        "nats",
    ),
    Column(
        "mutual_information",
        "mutual information",
        "What z says about which held-out datum it came from; at most log N for N of them. Zero: "
        "q is the same for all data, and a small gap is no merit.",
        "nats",
    ),
    Column(
        "active_units",
        "active units",
        "Latents whose posterior mean varies over held-out data (variance above 0.01).",
    ),
    Column("seconds", "training time", "Seconds that training took, without evaluation.", "s"),
    Column(
        "epochs",
        "epochs",
        "Passes over the training data; rounds, where rows were fitted with the model fixed.",
    ),
)


def _latents(table: "Comparison", rows: Sequence[Row]) -> Table:
    return Table(
        "What the latents carry, and what training took",
        [_GUIDE, *_LATENTS],
        [_latents_of(row, table.results[row.guide]) for row in rows],
        f"Mutual information is at most log N = {rows[0].ceiling:.2f} nats.",
    )


def _latents_of(row: Row, result: GuideResult) -> list[Cell]:
    bound, ceiling = result.test.bound, f"At most {row.ceiling:.3f}"
    rate, distortion = (
        float(stats.mean_over_data(part).error) for part in (bound.rate, bound.distortion)
    )
    return [
        words(row.guide),
        estimate(row.rate, rate),
        estimate(row.distortion, distortion),
        estimate(row.mutual_information, row.mutual_information_error, note=ceiling),
        number(
            float(row.active_units), note=f"{row.active_units} of {result.means.shape[1]} latents"
        ),
        number(row.seconds, f"{row.seconds:.1f}"),
        number(float(row.epochs)),
    ]


_TRUST = (
    Column(
        "method",
        "log p by",
        "How log p(y) was estimated, and on which side of the truth that lies on average.",
        is_number=False,
    ),
    Column(
        "unreliable",
        "log p doubted",
        "Held-out data whose log p(y) cannot be trusted, by what its estimator can see.",
    ),
    Column(
        "lost",
        "best q not found",
        "Held-out data for which the search for the family's best q was not done, or the guide "
        "beat its result. The two gaps of such a datum are split wrongly; their sum is right.",
    ),
    Column(
        "poor_proposal",
        "k > 0.7",
        "Held-out data with a Pareto k above 0.7, of the guide's own importance weights: the "
        "guide misses a part of their posterior, and no practical number of its draws would "
        "give log p(y).",
    ),
    Column(
        "trusted",
        "all trusted",
        "Held-out data of which log p(y), both ELBOs and both gaps can be trusted, for all that "
        "can be seen: not doubted, with a best q, and with no gap below zero beyond its error.",
    ),
    Column(
        "stopped",
        "training",
        "How training ended: finished, early (validation no longer improved) or interrupted.",
        is_number=False,
    ),
)


def _trust_table(table: "Comparison", rows: Sequence[Row]) -> Table:
    return Table(
        "How far the numbers can be trusted",
        [_GUIDE, *_TRUST],
        [_trust_of(row, table.results[row.guide]) for row in rows],
    )


def _trust_of(row: Row, result: GuideResult) -> list[Cell]:
    marginal, size = result.gap.log_marginal, len(result.means)
    doubted, lost, _ = _untrusted(result)
    trusted = _count(result.gap.reliable)
    return [
        words(row.guide),
        words(f"{marginal.method} ({marginal.bound.value})"),
        number(row.unreliable, f"{doubted} of {size}", note=_why(result).strip(" ()")),
        number(lost / size, f"{lost} of {size}"),
        number(row.poor_proposal, f"{_poor(result)} of {size}"),
        number(trusted / size, f"{trusted} of {size}"),
        words(result.fit.stopped),
    ]


# Title, caption and what is to be seen, by the figure's name.
_FIGURES = {
    "learning_curves": (
        "Training.",
        "ELBO of the training data by epoch.",
        "Lines, one a guide: ELBO in nats a datum against the epoch",
    ),
    "comparison": (
        "ELBO and log p.",
        "Held-out data, ± one standard error. The distance between the two is the inference gap.",
        "A dot with an error bar for the ELBO and one for log p; the table above has the numbers",
    ),
    "gaps": (
        "The two gaps.",
        "What the family costs, and what is lost because q comes from a map.",
        "A dot with an error bar for each gap; the table above has the numbers",
    ),
    "pareto_k": (
        "Pareto k by datum.",
        "Above 0.7 the guide misses a part of that datum's posterior.",
        "Points, one a held-out datum, against the limit of 0.7",
    ),
    "reconstructions": (
        "Data, reconstructions and draws.",
        "Some held-out data, the mean of p(y | z) at their posterior means, and at draws of the "
        "prior.",
        "Rows of data, of their reconstructions and of prior draws",
    ),
    "worst": (
        "Where inference loses most.",
        "The held-out data with the largest inference gaps under each guide, and what it makes of "
        "them.",
        "Rows of the data with the largest gaps and of their reconstructions",
    ),
    "latent_plane": (
        "Embeddings.",
        "Posterior means of held-out data, by class where classes are known.",
        "Points in the plane of the two latents, a panel a guide",
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
        Text("One click selects all lines. Beside this file, run.json has the same and more."),
        Code(_commands(run)),
        Facts(_facts(tables) | {"versions": _fact({**run["versions"], "python": run["python"]})}),
    ]


def _commands(run: Mapping[str, Any]) -> str:
    """Lines that install what was used, and the command, if there was one."""
    packages = {name: text for name, text in run["versions"].items() if name != "pyro-vae"}
    # `+cpu` and the like name a build that only the place it came from has.
    pinned = shlex.join(f"{name}=={text.split('+')[0]}" for name, text in packages.items())
    command = run["about"].get("command") or (
        "# called from Python: pyro_vae.compare(model, guides, train, test, ...), settings below"
    )
    return (
        f"# Python {run['python']}, pyro-vae {run['versions']['pyro-vae']}\n"
        f"pip install {pinned}\n{command}"
    )


def _facts(tables: "Mapping[str, Comparison]") -> dict[str, str]:
    """Data, model, seed and settings; where the comparisons differ, of each."""
    notes = {title: table.provenance()["about"] for title, table in tables.items()}
    names = dict.fromkeys(
        name for about in notes.values() for name in about if name not in _SAID_ELSEWHERE
    )
    facts = {}
    for name in names:
        values = {title: _fact(about.get(name)) for title, about in notes.items()}
        same = len(set(values.values())) == 1
        said = next(iter(values.values())) if same else _fact(values)
        if said:
            facts[name.replace("_", " ")] = said
    first = next(iter(tables.values()))
    seeds = [one.about.get("seed", "unknown") for one in (first, *first.others)]
    return {**facts, "seed": _fact(seeds)}


def _fact(value: Any) -> str:
    """A setting in words; empty for none."""
    if value is None or value == "None":
        return ""
    if isinstance(value, Mapping):
        pairs = {str(name): _fact(entry) for name, entry in value.items()}
        return "; ".join(f"{name}: {text}" for name, text in pairs.items() if text)
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    text = re.sub(r" at 0x[0-9a-f]+", "", text)  # where an object was in memory says nothing
    return text if len(text) <= _LONGEST_FACT else text[:_LONGEST_FACT] + "…"
