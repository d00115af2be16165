"""Runs the replications and writes RESULTS.md: `python -m replications [NAME ...]`.

With names only these run, and RESULTS.md stays as it is. Nothing is hidden: a result that was not
replicated stays in the table, with what a further run said about it.

    --smoke     tiny sizes, to see that all of them run; judges nothing and writes no file
"""

import argparse
import importlib
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


def main() -> None:
    """Runs what is asked for, prints it, and writes the page where all of them ran."""
    parser = argparse.ArgumentParser(prog="python -m replications", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"all unless named: {', '.join(names())}")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes; judges nothing")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(names()))
    if unknown:
        parser.error(f"no replication {', '.join(unknown)}; there are {', '.join(names())}")
    torch.set_num_threads(1)  # small tensors make threads fight
    index, sections = [], []
    for name in chosen.names or names():
        print(f"==> {name}", flush=True)
        result, seconds = run(name, smoke=chosen.smoke)
        print(f"\n{result.page()}\n({seconds:.0f} s)\n", flush=True)
        source = result.source.split(":")[0]
        index.append(f"| {result.title} | {source} | {result.verdict} | {seconds:.0f} |")
        sections.append(f"{result.page()}\n*`replications/{name}.py`*\n")
    if not chosen.smoke and not chosen.names:
        text = INTRODUCTION + "\n".join(index) + "\n\n" + "\n".join(sections)
        (HERE / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
