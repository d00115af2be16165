"""RESULTS.md and AUDITS.md, made from the claims of the scripts and the kept findings."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .record import Finding, Record


@dataclass(frozen=True)
class Kind:
    """Replications or audits: their words, and where they are kept.

    Arguments:
        folder: Of the scripts; the findings lie in `results.json` there.
        package: Of the scripts, from which they are imported.
        page: The file that is written.
        title: Its title.
        introduction: What a reader should know before the table.
        theirs: Heading of the column with the numbers of others.
        confirmed: The verdict if every judged value meets its criterion.
        refuted: The verdict if one does not.
        others: What is said of those in the answer, with how many of them are explained.
    """

    folder: Path
    package: str
    page: Path
    title: str
    introduction: str
    theirs: str
    confirmed: str
    refuted: str
    others: str

    def names(self) -> list[str]:
        """The scripts, in the order of their names."""
        return sorted(path.stem for path in self.folder.glob("[a-z]*_*.py"))

    def verdict(self, record: Record) -> str:
        """In a word or two."""
        if record.met:
            return self.confirmed
        return self.refuted + ", explained" * record.claim.explained

    @property
    def kept(self) -> Path:
        """Where the findings of the last runs lie."""
        return self.folder / "results.json"


HERE = Path(__file__).parent
REPLICATIONS = Kind(
    folder=HERE,
    package="replications",
    page=HERE / "RESULTS.md",
    title="Published results, computed afresh",
    introduction=(
        "Each script states its criterion, written down before its first run, and prints the "
        "published value, or direction or identity, beside ours with its standard error where it "
        "has one (over data or draws; of training there is one run unless it says otherwise). "
        "Results that were not replicated stay here, with what a further run says of them. `make "
        "replications` repeats all."
    ),
    theirs="published",
    confirmed="replicated",
    refuted="not replicated",
    others="of the others {} explained by a further run",
)
AUDITS = Kind(
    folder=HERE / "audits",
    package="replications.audits",
    page=HERE / "AUDITS.md",
    title="Other packages' numbers, checked",
    introduction=(
        "A model that another package fitted, in an environment of its own, is rebuilt as a Pyro "
        "program at the parameters it stored, and its own q(z) as the guide; its reported number "
        "stands beside ours. A difference is no fault where it is one of definition, and the last "
        "paragraph of each part says which it is. `make audits` repeats all."
    ),
    theirs="reported",
    confirmed="confirmed",
    refuted="differs",
    others="the others differ, for reasons given with each",
)


def section(kind: Kind, name: str, record: Record) -> str:
    """A part of the page: the verdict, the values, and then how they came about."""
    claim, marks = record.claim, {True: "yes", False: "**no**", None: ""}
    rows = [
        f"| {each.quantity} | {each.theirs} | {each.ours} | {marks[each.met]} |"
        for each in record.findings
    ]
    parts = [
        f"## {claim.title}",
        f"**{kind.verdict(record).capitalize()}**: {record.score}.",
        f"| quantity | {kind.theirs} | here | met |\n| --- | ---: | ---: | :---: |\n"
        + "\n".join(rows),
        claim.remark,
        f"*Criterion.* {claim.criterion}",
        f"*Setting.* {claim.setting}",
        f"*Source.* {claim.source}",
        f"*Figures.* {claim.figures}" if claim.figures else "",
        f"`python -m replications {name}`, {record.seconds:.0f} s of one processor",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def page(kind: Kind, records: Mapping[str, Record]) -> str:
    """The whole page, the answer first."""
    good = sum(record.met for record in records.values())
    explained = sum(not each.met and each.claim.explained for each in records.values())
    minutes = sum(record.seconds for record in records.values()) / 60
    answer = (
        f"**{good} of {len(records)} {kind.confirmed}; {kind.others.format(explained)}. "
        f"All together took {math.ceil(minutes)} minutes of one processor.**"
    )
    rows = [
        f"| {each.claim.title} | {each.claim.source.split(':')[0]} | {kind.verdict(each)} |"
        for each in records.values()
    ]
    table = "| result | source | verdict |\n| --- | --- | --- |\n" + "\n".join(rows)
    sections = [section(kind, name, record) for name, record in records.items()]
    return "\n\n".join([f"# {kind.title}", answer, kind.introduction, table, *sections])


def keep(kind: Kind, name: str, findings: Sequence[Finding], seconds: float) -> None:
    """Puts the findings of a run beside those of the others."""
    kept = json.loads(kind.kept.read_text()) if kind.kept.exists() else {}
    kept[name] = {"seconds": round(seconds), "findings": [asdict(each) for each in findings]}
    text = json.dumps(dict(sorted(kept.items())), indent=1, ensure_ascii=False)
    kind.kept.write_text(text + "\n")
