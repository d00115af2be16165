"""What the ladder promises of its verdicts, and which of it some cells break.

Shares are tested, not compared: a ladder that keeps every promise breaks one of them by chance
with a probability of :data:`FALSE_ALARM` at most.
"""

from collections.abc import Iterable, Sequence

from scipy.stats import binom

from tests.trust.cells import Cell

FALSE_ALARM = 1e-6  # per test; 96 of them are made of a whole table
COVERAGE = (0.93, 0.97)  # of intervals of 95 percent, where the error is a Monte Carlo one
# The share that is reliable; else 0.99.
LEAST = {"funnel": 0.9, "16-modes": 0.9, "horseshoe": 0.8, "non-centred-horseshoe": 0.9}
CAUTIOUS = {
    "horseshoe",
    "non-centred-horseshoe",
}  # errors bound a bias, so that intervals may cover more often
MOST_WRONG = 1e-4  # share of the reliable that is off by more than five errors


def broken(cells: Sequence[Cell]) -> list[str]:
    """Promises that are broken by cells of any programs."""
    programs = {cell.program: [c for c in cells if c.program == cell.program] for cell in cells}
    found = [line for cell in cells for line in _of_coverage([cell])]
    for own in programs.values():
        found += [*(_of_coverage(own) if len(own) > 1 else []), *_of_shares(own)]
    wrong, reliable = (sum(getattr(c, name) for c in cells) for name in ("wrong", "reliable"))
    if wrong > MOST_WRONG * reliable:
        found.append(f"{wrong} of {reliable} reliable data are off by more than five errors")
    return found


def _of_coverage(cells: Sequence[Cell]) -> Iterable[str]:
    """Intervals are neither too narrow nor too wide, as far as so many of them can tell."""
    covered, sampled = sum(c.covered for c in cells), sum(c.sampled for c in cells)
    low, high = COVERAGE
    too_few, too_many = binom.cdf(covered, sampled, low), binom.sf(covered - 1, sampled, high)
    by_chance = too_few if cells[0].program in CAUTIOUS else min(too_few, too_many)
    if sampled and float(by_chance) < FALSE_ALARM:
        yield f"{_named(cells)}: {covered} of {sampled} intervals of 95% hold the truth"


def _of_shares(cells: Sequence[Cell]) -> Iterable[str]:
    """Enough data are reliable, and exact answers keep within the error that they state."""
    data, reliable, beyond = (
        sum(getattr(c, name) for c in cells) for name in ("data", "reliable", "beyond")
    )
    least = LEAST.get(cells[0].program, 0.99)
    if float(binom.cdf(reliable, data, least)) < FALSE_ALARM:
        yield f"{_named(cells)}: {reliable} of {data} data are reliable, not {least:.0%}"
    if beyond:
        yield f"{_named(cells)}: {beyond} exact answers are off by more than they state"


def _named(cells: Sequence[Cell]) -> str:
    return cells[0].program + (f" under {cells[0].guide}" if len(cells) == 1 else "")
