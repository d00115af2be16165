"""Prints the table: `python -m tests.trust [--size N] [--guide G] [programs ...]`."""

import argparse

import torch

from tests.trust.cells import GUIDES, HEADER, answers
from tests.trust.programs import PROGRAMS


def main() -> None:
    """Asks every cell, and sums up each program."""
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--size", type=int, default=500, help="data of each program")
    parser.add_argument("--guide", choices=GUIDES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    print(HEADER)
    data = trusted = wrong = beyond = 0
    for name in chosen.programs or PROGRAMS:
        came = answers(name, chosen.size, chosen.guide or list(GUIDES), chosen.seed)
        for answer in came:
            print(answer.row(), flush=True)
        reliable = torch.cat([a.found.reliable for a in came])
        sampled = torch.cat([a.found.reliable & ~a.exact for a in came])
        covered = torch.cat([a.covered for a in came])[sampled].double()
        said = f"{covered.mean():.1%} of {len(covered)}" if len(covered) else "exact"
        print(f"{name:22} {'all':10} {reliable.double().mean():6.1%}  covered {said}", flush=True)
        data, trusted = data + len(reliable), trusted + int(reliable.sum())
        wrong += sum(int(a.wrong.sum()) for a in came)
        beyond += sum(int(a.beyond.sum()) for a in came)
    print(
        f"{trusted} of {data} reliable; {wrong} off by more than 5 errors; {beyond} beyond bounds"
    )


if __name__ == "__main__":
    main()
