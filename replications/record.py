"""What a replication or an audit says: a claim, fixed before the run, and what was found.

A script of this folder has a :class:`Claim`, written down before its first run, and a function
`findings(*, smoke)` that computes the values. Where a criterion or a setting was changed after a
value had been seen, the claim's remark says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

import pyro_vae as pv

ADAM = partial(torch.optim.Adam, lr=2e-3)
"""Adam with its authors' betas, as in the sources; the default of `pv.fit` has another."""


@dataclass(frozen=True)
class Finding:
    """One value.

    Arguments:
        quantity: What it is, with its unit.
        theirs: The value that others published or report.
        ours: Ours, with its error.
        met: Whether the criterion is met; None for a value that is shown and not judged.
    """

    quantity: str
    theirs: str
    ours: str
    met: bool | None = None


@dataclass(frozen=True)
class Claim:
    """A published result or a reported number, and when it counts as confirmed.

    Arguments:
        title: What is claimed, in a sentence.
        source: Authors, year, title, and where in it.
        setting: Model, data and sizes, with what differs from the source.
        criterion: When it counts as replicated.
        figures: Whether the published figures were read in their source, and where.
        remark: What a reader should know beside the values: changes after a first run, and what a
            further run says of a failure.
        explained: Whether a further run, described in the remark, explains the missed criterion.
    """

    title: str
    source: str
    setting: str
    criterion: str
    figures: str = ""
    remark: str = ""
    explained: bool = False


@dataclass(frozen=True)
class Record:
    """A claim with what was found, and the seconds of processor time that it took."""

    claim: Claim
    findings: Sequence[Finding]
    seconds: float

    @property
    def met(self) -> bool:
        """Whether every value that is judged meets the criterion."""
        return all(finding.met for finding in self.findings if finding.met is not None)

    @property
    def score(self) -> str:
        """Says how many of the judged values meet the criterion."""
        judged = [finding.met for finding in self.findings if finding.met is not None]
        values = "value" if len(judged) == 1 else "values"
        return f"the criterion is met by {sum(judged)} of {len(judged)} {values}"


def within(value: float, error: float, target: float, errors: float = 4.0) -> bool:
    """Whether a value is at most this many standard errors from its target.

    A right value is more than four standard errors off with a probability of 6e-5.
    """
    return abs(value - target) <= errors * error


def numbers(estimate: pv.Estimate) -> tuple[float, float]:
    """Value and error of an estimate of one number."""
    return float(estimate.value), float(estimate.error)
