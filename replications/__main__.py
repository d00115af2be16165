"""Runs the replications and writes RESULTS.md: `python -m replications [NAME ...]`.

With names only these run, and the rest of the page stays as it was. Nothing is hidden: a result
that was not replicated stays in the table, with what a further run said about it.

    --smoke     tiny sizes, to see that all of them run; judges nothing and writes no file
"""

import argparse
import importlib
import re
import time
from pathlib import Path

import torch

from .record import Replication

HERE = Path(__file__).parent
INTRODUCTION = """# Published results, computed afresh

`make replications` runs the scripts of this folder and writes this page. Each states its criterion,
written down before its first run, and prints the published value beside ours with its standard
error. Results that were not replicated stay here.

| result | source | verdict | seconds |
| --- | --- | --- | ---: |
"""


def names() -> list[str]:
    """The scripts, in the order of their names."""
    return sorted(path.stem for path in HERE.glob("*_[12][0-9][0-9][0-9]*.py"))


def run(name: str, *, smoke: bool) -> tuple[Replication, float]:
    """One replication, and its seconds."""
    start = time.perf_counter()
    result: Replication = importlib.import_module(f"replications.{name}").replicate(smoke=smoke)
    return result, time.perf_counter() - start


def section(name: str, result: Replication, seconds: float) -> str:
    """A part of the page, whose first line, a comment, is its row of the table at the top."""
    row = f"| {result.title} | {result.source.split(':')[0]} | {result.verdict} | {seconds:.0f} |"
    return f"<!-- {name} {row} -->\n{result.page()}\n*`replications/{name}.py`*\n"


def page(sections: dict[str, str]) -> str:
    """The whole of RESULTS.md, in the order of the names."""
    ordered = [sections[name] for name in sorted(sections)]
    rows = [part.splitlines()[0].split(" ", 2)[2].removesuffix(" -->") for part in ordered]
    return INTRODUCTION + "\n".join(rows) + "\n\n" + "\n".join(ordered)


def written(text: str) -> dict[str, str]:
    """The sections of a page, by name."""
    parts = re.split(r"^(?=<!-- \w+ \|)", text, flags=re.MULTILINE)[1:]
    return {part.split(" ", 2)[1]: part.rstrip("\n") + "\n" for part in parts}


def main() -> None:
    """Runs what is asked for, prints it, and puts it into the page."""
    parser = argparse.ArgumentParser(prog="python -m replications", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"all by default: {', '.join(names())}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; judges nothing")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        parser.error(f"no replication {', '.join(unknown)}; there are {', '.join(names())}")
    torch.set_num_threads(1)  # small tensors make threads fight
    place = HERE / "RESULTS.md"
    for name in chosen.names or names():
        print(f"==> {name}", flush=True)
        result, seconds = run(name, smoke=chosen.smoke)
        print(f"\n{result.page()}\n({seconds:.0f} s)\n", flush=True)
        if not chosen.smoke:
            kept = written(place.read_text()) if place.exists() else {}
            kept = {old: part for old, part in kept.items() if old in names()}
            place.write_text(page(kept | {name: section(name, result, seconds)}))


if __name__ == "__main__":
    main()
