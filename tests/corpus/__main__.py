"""Prints the table: `make corpus`, or some of it with `PROGRAMS="vae lda --question elbo"`.

With `--log FILE` it goes on where a run with the same file stopped.
"""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.corpus import PROGRAMS
from tests.corpus.cells import GUIDES, QUESTIONS, ask, cells

KINDS = ("right", "refused", "doubted", "wrong", "failed")


def main() -> None:
    """Asks every cell, and sums up."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--guide", choices=GUIDES, action="append")
    parser.add_argument("--question", choices=QUESTIONS, action="append")
    parser.add_argument("--log", type=Path, help="a file of rows, to which more are added")
    chosen = parser.parse_args()
    known = chosen.log.read_text().splitlines() if chosen.log and chosen.log.exists() else []
    rows = {tuple(row.split()[:3]): row for row in known}
    counts: dict[str, Counter[str]] = {question: Counter() for question in QUESTIONS}
    for name, guide, question in cells(chosen.programs or PROGRAMS):
        if guide in (chosen.guide or GUIDES) and question in (chosen.question or QUESTIONS):
            row = rows.get((name, guide, question)) or asked(name, guide, question, chosen.log)
            counts[question][row.split()[3]] += 1
            print(row, flush=True)
    print_counts({question: kinds for question, kinds in counts.items() if kinds})


def asked(name: str, guide: str, question: str, log: Path | None) -> str:
    """The row of a cell, added to the log."""
    outcome = ask(name, guide, question)
    row = f"{name:22} {guide:8} {question:9} {outcome.kind:8} {outcome.seconds:6.2f} s"
    row = f"{row}  {outcome.words[:300]}".rstrip()
    if log is not None:
        with log.open("a") as file:
            print(row, file=file)
    return row


def print_counts(counts: Mapping[str, Counter[str]]) -> None:
    """A line for each question, and the share of cells that are right."""
    print("".join(f"{word:>10}" for word in ("", "cells", *KINDS)))
    everything = sum(counts.values(), Counter())
    for question, kinds in [*counts.items(), ("all", everything)]:
        numbers = (kinds.total(), *(kinds[kind] for kind in KINDS))
        print(f"{question:>10}" + "".join(f"{number:10}" for number in numbers))
    print(f"{everything['right'] / max(everything.total(), 1):.1%} right")


if __name__ == "__main__":
    main()
