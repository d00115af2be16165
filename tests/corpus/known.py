"""Cells of the corpus that are not right: the expected result of each, and the reason.

Whoever makes a cell right deletes its line. `python -m tests.corpus` prints all results.
The page "What runs" prints the reasons.
"""

from typing import NamedTuple

ALL = "*"


class Known(NamedTuple):
    """The results that a cell may have, and the reason."""

    kinds: tuple[str, ...]
    reason: str


RIGHT = Known(("right",), "the program is supported")

LOOP = Known(("refused",), "a loop over data is not supported; the error gives the plate to write")
DISCRETE = Known(
    ("refused",), "all latents of a datum are discrete and summed out: none is left to draw or fit"
)
BROADCAST = Known(
    ("refused",),
    "Pyro's TraceEnum_ELBO needs networks that broadcast; `pv.BetaELBO(1.0)` does not",
)
TIED = Known(("refused",), "the guide has a posterior only for all training rows together")
UNTRAINED = Known(
    ("refused",),
    "the guide has no parameters before training, and afterwards a posterior only for all "
    "training rows together",
)
ASKED = Known(
    ("right", "refused"),
    "the guide has parameters for the training rows only: right on all of these rows or inside "
    "`pv.minibatch`, refused otherwise",
)
RUNS = RIGHT._replace(reason="Pyro alone runs this")
NAMED = Known(
    ("refused",),
    "there are as many items as data, so `pv.minibatch` needs the name of the plate over data",
)
INVERTED = Known(("refused",), "the flow has no inverse, so the density at other points is unknown")
AUXILIARY = Known(("refused",), "the density of this guide at a given point is unknown")

KNOWN: dict[tuple[str, str, str], Known] = {
    ("auxiliary", "author", "compare"): AUXILIARY,
    ("item_response_1pl", "author", "svi"): NAMED,
    ("item_response_2pl", "author", "svi"): NAMED,
    ("planar_guide", "author", "compare"): INVERTED,
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
    KNOWN[_name, "author", ALL] = UNTRAINED
    KNOWN[_name, "author", "fit"] = RIGHT
for _name in ("fixed_mixture", "factorial_hmm"):
    KNOWN[_name, ALL, "fit"] = Known(("refused",), "the program has nothing to train")
KNOWN["sequential_plate", ALL, ALL] = LOOP
for _name, _, _ in list(KNOWN):
    KNOWN.setdefault((_name, "author", "svi"), RUNS)


def expected(name: str, guide: str, question: str) -> Known:
    """Returns the expected results of a cell: the most specific line of the table, else right."""
    lines = ((name, guide, question), (name, guide, ALL), (name, ALL, question), (name, ALL, ALL))
    return next((KNOWN[line] for line in lines if line in KNOWN), RIGHT)
