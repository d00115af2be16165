"""Asks the ladder for log p(y) of every program under every guide, and says what is broken.

`python -m tests.trust [--size N] [--workers N] [--guide G ...] [--out FOLDER] [programs ...]`.
Every part of a cell is a task of its own. Its answer goes to `answers.jsonl` in the folder as it
comes, and the table so far to `table.md`; with `--resume`, a run that was cut short goes on there.
"""

import argparse
import json
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from tests.trust.cells import GUIDES, HEADER, Answer, Cell, Task, asked
from tests.trust.programs import PROGRAMS, SHARES
from tests.trust.promises import broken

_PART = 50  # data of a task, which then takes a minute or two at most
Answers = dict[Task, Answer]


def _alone() -> None:
    """A process of one thread."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)


def _tasks(names: list[str], guides: list[str], size: int, seed: int) -> Iterator[Task]:
    """Some data of every cell, then the next: a run that is cut short has seen all of them."""
    sizes = {name: max(1, int(size * SHARES.get(name, 1))) for name in names}
    for first in range(0, size, _PART):
        for guide in guides:
            for name in (name for name in names if first < sizes[name]):
                yield Task(name, guide, sizes[name], first, min(_PART, sizes[name] - first), seed)


def _read(file: Path) -> Answers:
    """Answers of an earlier run."""
    pairs = map(json.loads, file.read_text().splitlines()) if file.exists() else ()
    return {Task(*task): Answer(*answer) for task, answer in pairs}


def _come(tasks: list[Task], workers: int) -> Iterator[tuple[Task, Answer | str]]:
    """Answers, in the order in which they come; an error does not stop the others."""
    with ProcessPoolExecutor(workers, initializer=_alone) as pool:
        futures = {pool.submit(asked, task): task for task in tasks}
        for future in as_completed(futures):
            try:
                yield futures[future], future.result()
            except Exception as error:
                yield futures[future], f"{type(error).__name__}: {error}"


def _cells(answers: Answers) -> list[Cell]:
    """Cells of what was answered so far, in the order of the programs."""
    parts: dict[tuple[str, str], list[Answer]] = {}
    for task, answer in answers.items():
        parts.setdefault((task.program, task.guide), []).append(answer)
    found = [Cell.of(*names, own) for names, own in parts.items()]
    places = [*PROGRAMS], [*GUIDES]
    return sorted(found, key=lambda c: (places[0].index(c.program), places[1].index(c.guide)))


def _page(cells: list[Cell], faults: list[str]) -> str:
    """The table, and what is broken."""
    seconds, data = (sum(getattr(cell, name) for cell in cells) for name in ("seconds", "data"))
    said = f"{len(cells)} cells, {data:,} data, {seconds:,.0f} s of a core; "
    said += f"{len(faults)} promises broken"
    return "\n".join([HEADER, *(cell.row() for cell in cells), "", said, "", *faults])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.trust", description=__doc__)
    parser.add_argument("programs", nargs="*", help="all unless named")
    parser.add_argument("--size", type=int, default=500, help="data of each cell")
    parser.add_argument("--guide", choices=GUIDES, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--out", type=Path, default=Path("build/trust"), help="folder")
    parser.add_argument("--resume", action="store_true", help="keep the answers in the folder")
    return parser.parse_args()


def main() -> None:
    """Asks every task, keeps the answers, prints the table, and ends with what is broken."""
    chosen, begun = _arguments(), time.monotonic()
    names, guides = chosen.programs or list(PROGRAMS), chosen.guide or list(GUIDES)
    tasks = list(_tasks(names, guides, chosen.size, chosen.seed))
    chosen.out.mkdir(parents=True, exist_ok=True)
    file, table = chosen.out / "answers.jsonl", chosen.out / "table.md"
    answers = _read(file) if chosen.resume else {}
    file.write_text("".join(f"{json.dumps(pair)}\n" for pair in answers.items()))
    failed: list[str] = []
    for task, answer in _come([task for task in tasks if task not in answers], chosen.workers):
        if isinstance(answer, str):
            failed.append(f"{task.program}, {task.guide}, from datum {task.first}: {answer}")
            print(failed[-1], flush=True)
            continue
        answers[task] = answer
        with file.open("a") as lines:
            print(json.dumps((task, answer)), file=lines)
        print(f"{len(answers)}/{len(tasks)} after {time.monotonic() - begun:.0f} s: {task.program} "
              f"{task.guide} {answer.seconds:.0f} s", flush=True)  # fmt: skip
        cells = _cells(answers)
        table.write_text(_page(cells, broken(cells)))
    cells = _cells(answers)
    faults = [*broken(cells), *failed]
    print(_page(cells, faults))
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
