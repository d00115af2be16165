"""The list of all quantities that a comparison reports for each guide.

The printed table, the csv file, the data frame and the HTML page are all made from :data:`COLUMNS`,
where every quantity is defined once: its heading, unit and definition, how its value is computed,
and when this value is in doubt.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .. import diagnostics, stats
from .._types import Estimate
from ..formatting import Column, count_of
from .results import GuideResult

if TYPE_CHECKING:
    from .comparison import Comparison

EVIDENCE, LATENTS, TRUST, NOWHERE = "evidence", "latents", "trust", ""  # tables of the page


class Share(NamedTuple):
    """A share of the data: `number` out of `size`."""

    number: int
    size: int


Value: TypeAlias = Estimate | Share | float | str


class Entry(NamedTuple):
    """A guide, and the comparison whose table has a row for this guide."""

    name: str
    table: "Comparison"

    @property
    def result(self) -> GuideResult:
        """The guide's result under the first seed."""
        return self.table.results[self.name]

    def spread(self, value: Callable[[GuideResult], Tensor]) -> float:
        """Computes the sd of a value over seeds; nan if only one run is complete."""
        values = [value(one.results[self.name]) for one in self.table.complete]
        return float(torch.stack(values).std()) if len(values) > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class Reported(Column):
    """A column of the tables in which a comparison reports its results.

    Arguments:
        of: Computes the column's value for a guide.
        table: Name of the HTML page's table that shows the column; empty if only the csv file
            and the data frame have the column.
        short: Heading on a terminal; empty for columns that are not printed there.
        spec: Format of numbers that have no error.
        note: Writes a note on an entry; the text is empty if there is no note.
        doubt: Says why an entry cannot be trusted; the text is empty if the entry can be trusted.
    """

    of: Callable[[Entry], Value]
    table: str
    short: str = ""
    spec: str = "g"
    note: Callable[[Entry], str] = lambda _: ""
    doubt: Callable[[Entry], str] = lambda _: ""

    def text(self, value: Value) -> str:
        """Formats a value for a terminal, with three decimals so that columns line up."""
        if isinstance(value, Estimate):
            return f"{value:.3f}"
        return value if isinstance(value, str) else f"{plain(value):{self.spec}}"

    def record(self, value: Value) -> dict[str, float | str]:
        """Returns the value and its error, if it has one, keyed by their names in the csv file."""
        if isinstance(value, Estimate):
            return {self.key: float(value.value), f"{self.key}_error": float(value.error)}
        return {self.key: value if isinstance(value, str) else plain(value)}


def plain(value: Share | float) -> float:
    """Converts a number or a share to a float."""
    return value.number / value.size if isinstance(value, Share) else float(value)


@dataclass(frozen=True)
class Row:
    """One guide's row of the table.

    Arguments:
        guide: Name of the guide.
        values: The value of each column, by the column's key, in the order of the columns.
    """

    guide: str
    values: Mapping[str, Value]

    def estimate(self, key: str) -> Estimate:
        """Returns a quantity of this guide with its error.

        Raises:
            KeyError: If there is no quantity of this name, or it has no error.
        """
        value = self.values[key]
        if not isinstance(value, Estimate):
            raise KeyError(f"'{key}' has no standard error: call row.number({key!r}) instead")
        return value

    def error(self, key: str) -> float:
        """Returns the standard error of a quantity; raises a KeyError if it has none."""
        return float(self.estimate(key).error)

    def number(self, key: str) -> float:
        """Returns a quantity of this guide as a plain number, without its error.

        Raises:
            KeyError: If there is no quantity of this name, or it is a text.
        """
        value = self.values[key]
        if isinstance(value, str):
            raise KeyError(
                f"'{key}' must be a number; got the text {value!r}: use row.values['{key}'] instead"
            )
        return float(value.value) if isinstance(value, Estimate) else plain(value)

    def record(self) -> dict[str, float | str]:
        """Returns numbers and texts by name, for the csv file; each error comes after its value."""
        return {
            name: part
            for column in COLUMNS
            for name, part in column.record(self.values[column.key]).items()
        }


def columns_of(table: str, rows: list[Row]) -> list[Reported]:
    """Returns the columns of a table on the HTML page, except columns without a known value."""
    return [
        column
        for column in COLUMNS
        if column.table == table and any(is_known(row.values[column.key]) for row in rows)
    ]


def is_known(value: Value) -> bool:
    """Whether a value is known, that is, not nan."""
    return not (isinstance(value, float) and math.isnan(value))


def _log_p_doubt(entry: Entry) -> str:
    bad = entry.result.untrusted.log_p
    return f"log p(y) cannot be trusted for {count_of(bad, 'datum')}" if bad else ""


def _split_doubt(entry: Entry) -> str:
    lost = entry.result.untrusted.lost
    return f"the best q of the family was not found for {count_of(lost, 'datum')}" if lost else ""


def _elbo_doubt(entry: Entry) -> str:
    tailed = entry.result.untrusted.tailed
    return f"the ELBO cannot be trusted for {count_of(tailed, 'datum')}" if tailed else ""


def _all_of(*doubts: Callable[[Entry], str]) -> Callable[[Entry], str]:
    return lambda entry: "; ".join(filter(None, (doubt(entry) for doubt in doubts)))


def _shifted(density: Estimate, log_scale: float) -> Estimate:
    """Adds a number of nats, which has no error, to an estimate."""
    return Estimate(density.value + log_scale, density.error)


def _active_units(entry: Entry) -> float:
    means = entry.result.means
    if len(means) < 2:
        return math.nan
    return float(diagnostics.active_units(means, entry.result.prior_variance)[0])


def _method(entry: Entry) -> str:
    marginal = entry.result.gap.log_marginal
    return f"{marginal.method} ({marginal.bound.value})"


GUIDE = Reported(
    key="guide",
    name="guide",
    definition="The guide, q(z | y), which approximates the posterior.",
    is_number=False,
    of=lambda entry: entry.name,
    table=NOWHERE,  # it names the rows of every table
    short="guide",
)
COLUMNS = (
    GUIDE,
    Reported(
        key="train_elbo",
        name="training ELBO",
        definition=(
            "ELBO of the training data, mean over data. If it is far above the ELBO of "
            "held-out data, the model overfits."
        ),
        unit="nats",
        of=lambda entry: _shifted(entry.result.train_bound.mean, entry.table.train_log_scale),
        table=EVIDENCE,
        short="training ELBO",
    ),
    Reported(
        key="elbo",
        name="ELBO",
        definition=(
            "Evidence lower bound of held-out data, E_q[log p(y, z) - log q(z | y)], "
            "mean over data: log p(y) minus the inference gap. Higher is better."
        ),
        unit="nats",
        of=lambda entry: _shifted(entry.result.gap.mean.elbo, entry.table.log_scale),
        table=EVIDENCE,
        short="ELBO",
        doubt=_elbo_doubt,
    ),
    Reported(
        key="log_p",
        name="log p",
        definition=(
            "Log marginal likelihood log p(y) of held-out data under the model, mean "
            "over data, by the tightest estimator available. Higher is better."
        ),
        unit="nats",
        of=lambda entry: _shifted(entry.result.gap.mean.log_marginal, entry.table.log_scale),
        table=EVIDENCE,
        short="log p",
        doubt=_log_p_doubt,
    ),
    Reported(
        key="approximation",
        name="approximation gap",
        definition=(
            "Log p(y) minus the ELBO of each datum's best q in the guide's family: the cost of "
            "the family."
        ),
        unit="nats",
        of=lambda entry: entry.result.gap.mean.approximation,
        table=EVIDENCE,
        short="approximation",
        doubt=_all_of(_log_p_doubt, _split_doubt),
    ),
    Reported(
        key="amortization",
        name="amortization gap",
        definition=(
            "ELBO of each datum's best q in the family, minus the guide's ELBO: the cost of a "
            "map that does not give the best q. The approximation gap "
            "and the amortization gap add up to log p - ELBO."
        ),
        unit="nats",
        of=lambda entry: entry.result.gap.mean.amortization,
        table=EVIDENCE,
        short="amortization",
        doubt=_all_of(_split_doubt, _elbo_doubt),
    ),
    Reported(
        key="log_p_spread",
        name="log p, sd over seeds",
        definition="Standard deviation of log p between runs that differ only in the seed.",
        unit="nats",
        of=lambda entry: entry.spread(lambda one: one.gap.mean.log_marginal.value),
        table=EVIDENCE,
        spec=".3f",
    ),
    Reported(
        key="elbo_spread",
        name="ELBO, sd over seeds",
        definition="Standard deviation of the ELBO between runs that differ only in the seed.",
        unit="nats",
        of=lambda entry: entry.spread(lambda one: one.gap.mean.elbo.value),
        table=EVIDENCE,
        spec=".3f",
    ),
    Reported(
        key="rate",
        name="rate",
        definition="KL(q(z | y) || p(z)), mean over held-out data: the cost of encoding z.",
        unit="nats",
        of=lambda entry: stats.mean_over_data(entry.result.test.bound.rate),
        table=LATENTS,
        short="rate",
    ),
    Reported(
        key="distortion",
        name="distortion",
        definition=(
            "-E_q[log p(y | z)], mean over held-out data: the cost of encoding y once z "
            "is known. ELBO = -distortion - rate."
        ),
        unit="nats",
        of=lambda entry: _shifted(
            stats.mean_over_data(entry.result.test.bound.distortion), -entry.table.log_scale
        ),
        table=LATENTS,
    ),
    Reported(
        key="active_units",
        name="active units",
        definition="Latents whose posterior mean varies between held-out data, with a variance "
        "above 1% of the prior variance.",
        of=_active_units,
        table=LATENTS,
        short="active",
        note=lambda entry: (
            f"{_active_units(entry):g} of {count_of(entry.result.means.shape[1], 'latent')}"
        ),
    ),
    Reported(
        key="mutual_information",
        name="mutual information",
        definition=(
            "Information that z carries about the identity of its held-out datum; at most "
            "log N for N data. A value of zero means that q is the same for all data; a small "
            "gap then does not mean that the guide is good."
        ),
        unit="nats",
        of=lambda entry: entry.result.information.estimate,
        table=LATENTS,
        short="information",
        note=lambda entry: f"At most {entry.result.information.ceiling:.3f}",
    ),
    Reported(
        key="ceiling",
        name="log N",
        definition="The upper limit of the mutual information.",
        unit="nats",
        of=lambda entry: entry.result.information.ceiling,
        table=NOWHERE,  # a note below the table of the latents has it
    ),
    Reported(
        key="seconds",
        name="training time",
        definition="Seconds of training, without evaluation.",
        unit="s",
        of=lambda entry: entry.result.seconds,
        table=LATENTS,
        short="seconds",
        spec=".1f",
    ),
    Reported(
        key="epochs",
        name="epochs",
        definition=(
            "Passes over the training data, or rounds of the fit if rows were fitted with the "
            "model fixed."
        ),
        of=lambda entry: float(max(entry.result.fit.history.epoch, default=0)),
        table=LATENTS,
    ),
    Reported(
        key="method",
        name="log p by",
        definition=(
            "How log p(y) was estimated, and whether the estimate is low on average, high on "
            "average or exact, if that is known."
        ),
        is_number=False,
        of=_method,
        table=TRUST,
    ),
    Reported(
        key="unreliable",
        name="log p doubted",
        definition="Held-out data whose log p(y) cannot be trusted, by the estimator's own checks.",
        of=lambda entry: Share(entry.result.untrusted.doubted, len(entry.result.means)),
        table=TRUST,
        note=lambda entry: entry.result.gap.log_marginal.reasons,
    ),
    Reported(
        key="lost",
        name="best q not found",
        definition=(
            "Held-out data for which the search for the best q in the family did not "
            "finish, or found a worse q than the guide's. Such a datum's approximation and "
            "amortization gaps are wrong, but their sum is right."
        ),
        of=lambda entry: Share(entry.result.untrusted.lost, len(entry.result.means)),
        table=TRUST,
    ),
    Reported(
        key="partly_covered",
        name="partly covered",
        definition=(
            "Held-out data whose log p(y) cannot be estimated from the guide's own "
            "importance weights: the guide covers their posterior only in part, and "
            "weights larger than those drawn may exist."
        ),
        of=lambda entry: Share(entry.result.partly_covered, len(entry.result.means)),
        table=TRUST,
        short="partly covered",
        spec=".0%",
    ),
    Reported(
        key="trusted",
        name="all trusted",
        definition=(
            "Held-out data whose log p(y), ELBOs and gaps pass every check: log p(y) is not "
            "in doubt, the best q was found, and no gap is negative by more than its error."
        ),
        of=lambda entry: Share(int(entry.result.gap.reliable.sum()), len(entry.result.means)),
        table=TRUST,
    ),
    Reported(
        key="stopped",
        name="training",
        definition="How training ended: finished (all epochs), converged (more epochs promise "
        "little gain), early (such as when validation no longer improved) or interrupted.",
        is_number=False,
        of=lambda entry: entry.result.fit.stopped,
        table=TRUST,
    ),
)
"""All quantities that a comparison reports, in the order of the columns of the csv file."""
