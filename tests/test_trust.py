"""The ladder against independent answers: sixteen programs under five guides, at a small size.

`make trust` asks 500 data of each cell and prints the table.
"""

import pytest
import torch

from tests.trust.cells import GUIDES, answers
from tests.trust.programs import PROGRAMS

pytestmark = [pytest.mark.usefixtures("float64"), pytest.mark.slow]


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_is_accepted_is_right(name: str) -> None:
    """Twenty data under each guide: reliable, covered, and exact ones within their bound."""
    came = answers(name, 20, list(GUIDES))
    reliable = torch.cat([answer.found.reliable for answer in came])
    assert float(reliable.double().mean()) >= came[0].known.least
    assert not any(bool(answer.beyond.any() or answer.wrong.any()) for answer in came)
    sampled = torch.cat([answer.covered[answer.found.reliable & ~answer.exact] for answer in came])
    if len(sampled) > 0:
        # Twenty data cannot show that intervals are too wide; `make trust` has enough.
        fewest = 0.8  # below it a correct ladder falls once in a million, of 60 intervals or more
        assert float(sampled.double().mean()) > fewest
        narrow = [
            (a.off.abs() <= 0.2 * 1.96 * a.found.error)[a.found.reliable & ~a.exact] for a in came
        ]
        assert float(torch.cat(narrow).double().mean()) < fewest  # the wrong twin
