"""Writes RESULTS.md and AUDITS.md from the claims of the scripts and the stored findings."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .record import Finding, Record


@dataclass(frozen=True)
class Kind:
    """The texts of the replications or of the audits, and the files that hold them.

    Arguments:
        folder: Folder of the scripts, whose `results.json` stores the findings.
        package: Package from which the scripts are imported.
        page: The file that is written.
        title: Title of the page.
        introduction: Paragraph between the answer and the table.
        theirs: Heading of the column with the numbers of others.
        confirmed: The verdict if every judged value meets its criterion.
        refuted: The verdict if a judged value misses its criterion.
        answer: First sentences of the page, with the number of confirmed scripts (`{good}`), of
            all scripts (`{total}`) and of explained failures (`{explained}`).
    """

    folder: Path
    package: str
    page: Path
    title: str
    introduction: str
    theirs: str
    confirmed: str
    refuted: str
    answer: str

    def names(self) -> list[str]:
        """Returns the names of the scripts in alphabetical order."""
        return sorted(path.stem for path in self.folder.glob("[a-z]*_*.py"))

    def verdict(self, record: Record) -> str:
        """Returns the verdict on a script, in one to three words."""
        if record.met:
            return self.confirmed
        return self.refuted + ", explained" * record.claim.explained

    @property
    def kept(self) -> Path:
        """Returns the path of the file that stores the findings of the last runs."""
        return self.folder / "results.json"


HERE = Path(__file__).parent
REPLICATIONS = Kind(
    folder=HERE,
    package="replications",
    page=HERE / "RESULTS.md",
    title="Published results, recomputed",
    introduction=(
        "The criterion of each script was written down before its first run; later changes are "
        "named. Each table compares the published value, direction or identity with ours. A number "
        "after ± is one standard error, over data or over draws. Models are trained once, unless "
        "the text says otherwise. Rows without an entry in the last column are shown but not "
        "judged, and rows that begin with *further* come from a further run, made because a "
        "criterion was missed. Results that were not replicated stay on this page. `make "
        "replications` recomputes everything."
    ),
    theirs="published",
    confirmed="replicated",
    refuted="not replicated",
    answer=(
        "{good} of {total} results were replicated. Of the others, {explained} are explained by a "
        "further run."
    ),
)
AUDITS = Kind(
    folder=HERE / "audits",
    package="replications.audits",
    page=HERE / "AUDITS.md",
    title="Other packages' numbers, checked",
    introduction=(
        "As a rule, another package fits a model in an environment of its own. The script "
        "rebuilds this model as a Pyro program with the fitted parameters, and the package's own "
        "q(z) as the guide. Each table compares the number that the package reports with ours. "
        "If a row names two quantities, the first one is reported and the second one is ours. A "
        "number after ± is one standard error. Rows without an entry in the last column are "
        "shown but not judged. A difference can come from a definition and need not be an error; "
        "the paragraph below each table says which it is. `make audits` repeats all audits."
    ),
    theirs="reported",
    confirmed="confirmed",
    refuted="differs",
    answer=(
        "The numbers of {good} of {total} packages were confirmed. Each difference is explained "
        "below."
    ),
)


def section(kind: Kind, name: str, record: Record) -> str:
    """Returns one section of a page: the verdict, the values, and then how they were found."""
    claim, marks = record.claim, {True: "yes", False: "**no**", None: ""}
    rows = [
        f"| {each.quantity} | {each.theirs} | {each.ours} | {marks[each.met]} |"
        for each in record.findings
    ]
    parts = [
        f"## {claim.title}",
        f"**{kind.verdict(record).capitalize()}**: {record.score}.",
        f"| quantity | {kind.theirs} | here | criterion met |\n| --- | ---: | ---: | :---: |\n"
        + "\n".join(rows),
        claim.remark,
        f"*Criterion.* {claim.criterion}",
        f"*Setting.* {claim.setting}",
        f"*Source.* {claim.source}",
        f"*Published values.* {claim.figures}" if claim.figures else "",
        f"`python -m replications {name}`, {record.seconds:.0f} s of processor time",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(kind: Kind, records: Mapping[str, Record]) -> str:
    """Returns the whole page, which begins with the answer."""
    good = sum(record.met for record in records.values())
    explained = sum(not each.met and each.claim.explained for each in records.values())
    minutes = sum(record.seconds for record in records.values()) / 60
    answer = (
        f"**{kind.answer.format(good=good, total=len(records), explained=explained)} "
        f"All scripts together took {math.ceil(minutes)} minutes of processor time.**"
    )
    rows = [
        f"| {each.claim.title} | {each.claim.source.split(':')[0]} | {kind.verdict(each)} |"
        for each in records.values()
    ]
    table = "| result | source | verdict |\n| --- | --- | --- |\n" + "\n".join(rows)
    sections = [section(kind, name, record) for name, record in records.items()]
    return "\n\n".join([f"# {kind.title}", answer, kind.introduction, table, *sections])


def keep(kind: Kind, name: str, findings: Sequence[Finding], seconds: float) -> None:
    """Stores the findings of a script's run in the file with those of the other scripts."""
    kept = json.loads(kind.kept.read_text()) if kind.kept.exists() else {}
    kept[name] = {"seconds": round(seconds), "findings": [asdict(each) for each in findings]}
    text = json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False)
    kind.kept.write_text(text + "\n")
