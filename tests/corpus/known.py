"""Cells that are not right yet, or never will be: what comes of each, and why.

Whoever mends one takes its line away; `python -m tests.corpus` prints what comes of every cell.
"""

from typing import NamedTuple

ALL = "*"


class Known(NamedTuple):
    """What may come of a cell, and the reason."""

    kinds: tuple[str, ...]
    reason: str


RIGHT = Known(("right",), "numbers of a supported program")

LOOP = Known(("refused",), "a loop over data is refused; a plate, as the refusal says, runs")
DISCRETE = Known(("refused",), "no latent to draw or to fit; log p is exact, says the refusal")
BROADCAST = Known(("refused",), "Pyro's own TraceEnum_ELBO asks of a net that it broadcasts")
TIED = Known(("refused",), "the guide is tied to its rows, all of which it needs, once trained")
ASKED = Known(("right", "refused"), "right on all rows or in pv.minibatch, else refused by name")
RUNS = RIGHT._replace(reason="Pyro alone runs this")
NAMED = Known(("refused",), "as many items as data: right if the plate over data is named")

KNOWN: dict[tuple[str, str, str], Known] = {
    ("auxiliary", "author", "compare"): Known(("refused",), "no density at a given point"),
    ("item_response_1pl", "author", "svi"): NAMED,
    ("item_response_2pl", "author", "svi"): NAMED,
    ("planar_guide", "author", "compare"): Known(("refused",), "no density at a given point"),
    ("parameters_per_datum", "author", "rows"): ASKED,
    ("parameters_of_all", "author", "rows"): ASKED,
    ("parameters_per_datum", "author", "compare"): TIED,
    ("parameters_of_all", "author", "compare"): TIED,
    ("ss_vae_enumerated", ALL, "svi"): BROADCAST,
}
for _name in ("hmm", "factorial_hmm", "gaussian_mixture", "fixed_mixture", "capture_recapture"):
    for _question in ("gap", "arviz", "compare"):
        KNOWN[_name, ALL, _question] = DISCRETE
for _name in ("autonormal", "autodiagonal"):
    KNOWN[_name, "author", ALL] = TIED
    KNOWN[_name, "author", "fit"] = RIGHT
for _name in ("fixed_mixture", "factorial_hmm"):
    KNOWN[_name, ALL, "fit"] = Known(("refused",), "nothing to train")
KNOWN["sequential_plate", ALL, ALL] = LOOP
for _name, _, _ in list(KNOWN):
    KNOWN.setdefault((_name, "author", "svi"), RUNS)


def expected(name: str, guide: str, question: str) -> Known:
    """What a cell must come to: the most particular line of the table, or right."""
    lines = ((name, guide, question), (name, guide, ALL), (name, ALL, question), (name, ALL, ALL))
    return next((KNOWN[line] for line in lines if line in KNOWN), RIGHT)
