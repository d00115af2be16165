"""Prints the table: `python -m tests.corpus [--guide G] [--question Q] [programs ...]`."""

import argparse
from collections import Counter

from tests.corpus import PROGRAMS
from tests.corpus.cells import GUIDES, QUESTIONS, ask, cells


def main() -> None:
    """Asks every cell, and sums up."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--guide", choices=GUIDES, action="append")
    parser.add_argument("--question", choices=QUESTIONS, action="append")
    chosen = parser.parse_args()
    kinds: Counter[str] = Counter()
    for name, guide, question in cells(chosen.programs or PROGRAMS):
        if guide in (chosen.guide or GUIDES) and question in (chosen.question or QUESTIONS):
            outcome = ask(name, guide, question)
            kinds[outcome.kind] += 1
            row = f"{name:22} {guide:8} {question:9} {outcome.kind:8} {outcome.seconds:6.2f} s"
            print(f"{row}  {outcome.words[:300]}".rstrip(), flush=True)
    total = sum(kinds.values())
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    print(f"{total} cells of {len(chosen.programs or PROGRAMS)} programs: {counts}")
    print(f"{kinds['right'] / max(total, 1):.1%} right")


if __name__ == "__main__":
    main()
