"""Runs replications and audits: `python -m replications [NAME ...]`, and writes their pages.

With names only these run; the others stay on the pages as they were. Nothing is hidden: a result
that was not replicated stays, with what a further run said about it.

    replications    all replications, without the audits
    audits          all audits, each of which first makes an environment for its package in build/
    pages           runs nothing: writes the pages from the findings that are kept
    --smoke         tiny sizes, to see that all of them run; judges nothing and writes no file
"""

import argparse
import importlib
import json
import os

import torch

from .page import AUDITS, REPLICATIONS, Kind, keep, page, section
from .record import Claim, Finding, Record


def claim_of(kind: Kind, name: str) -> Claim:
    """What a script sets out to check."""
    claim: Claim = importlib.import_module(f"{kind.package}.{name}").CLAIM
    return claim


def run(kind: Kind, name: str, *, smoke: bool) -> Record:
    """One script, and the seconds of processor time it takes, those of its peer among them."""
    script = importlib.import_module(f"{kind.package}.{name}")
    start = sum(os.times()[:4])
    found = script.findings(smoke=smoke)
    return Record(script.CLAIM, found, sum(os.times()[:4]) - start)


def records(kind: Kind) -> dict[str, Record]:
    """What the last runs found, by name."""
    kept = json.loads(kind.kept.read_text()) if kind.kept.exists() else {}
    return {
        name: Record(
            claim_of(kind, name), [Finding(**each) for each in part["findings"]], part["seconds"]
        )
        for name, part in kept.items()
        if name in kind.names()
    }


def write(kind: Kind) -> None:
    """The page, from the findings of the last runs."""
    kind.page.write_text(page(kind, records(kind)))


def chosen(names: list[str]) -> list[tuple[Kind, str]]:
    """The scripts of these names; everything if there are none."""
    groups = {"replications": [REPLICATIONS], "audits": [AUDITS], "pages": []}
    known = {name: kind for kind in (REPLICATIONS, AUDITS) for name in kind.names()}
    unknown = sorted(set(names) - set(known) - set(groups))
    if unknown:
        raise SystemExit(f"no {', '.join(unknown)}; there are {', '.join([*groups, *known])}")
    whole = [kind for name in names for kind in groups.get(name, [])]
    if not names:
        whole = [REPLICATIONS, AUDITS]
    picked = [(known[name], name) for name in names if name in known]
    return [(kind, name) for kind in whole for name in kind.names()] + picked


def main() -> None:
    """Runs what is asked for, prints it, and puts it into the pages."""
    parser = argparse.ArgumentParser(
        prog="python -m replications",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--smoke", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # small tensors make threads fight
    for kind, name in chosen(arguments.names):
        print(f"==> {name}", flush=True)
        record = run(kind, name, smoke=arguments.smoke)
        print(section(kind, name, record), flush=True)
        if not arguments.smoke:
            keep(kind, name, record.findings, record.seconds)
            write(kind)
    if "pages" in arguments.names:
        for kind in (REPLICATIONS, AUDITS):
            write(kind)


if __name__ == "__main__":
    main()
