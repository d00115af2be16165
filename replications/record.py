"""What a replication says: published and own values side by side, and whether the criterion is met.

A script of this folder has a function `replicate(*, smoke)` that returns a :class:`Replication`.
Its criterion was written down before its first run; where it or the setting was changed later, the
remark says so.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One value.

    Arguments:
        quantity: What it is, with its unit.
        published: The published value.
        ours: Ours, with its error.
        met: Whether the criterion is met; None for a value that is shown and not judged.
    """

    quantity: str
    published: str
    ours: str
    met: bool | None = None


@dataclass(frozen=True)
class Replication:
    """One published result.

    Arguments:
        title: What is claimed, in a sentence.
        source: Authors, year, title, and where in it.
        setting: Model, data and sizes, with what differs from the source.
        criterion: When it counts as replicated.
        findings: The values.
        remark: What a reader should know beside the values.
    """

    title: str
    source: str
    setting: str
    criterion: str
    findings: tuple[Finding, ...]
    remark: str = ""

    @property
    def met(self) -> bool:
        """Whether every value that is judged meets the criterion."""
        return all(finding.met for finding in self.findings if finding.met is not None)

    @property
    def verdict(self) -> str:
        """In a word."""
        return "replicated" if self.met else "not replicated"

    def page(self) -> str:
        """The section of RESULTS.md."""
        marks = {True: "yes", False: "**no**", None: ""}
        rows = [
            f"| {each.quantity} | {each.published} | {each.ours} | {marks[each.met]} |"
            for each in self.findings
        ]
        remark = f"\n\n{self.remark}" if self.remark else ""
        return (
            f"## {self.title}\n\n{self.source}\n\n"
            f"*Setting.* {self.setting}\n\n*Criterion.* {self.criterion}\n\n"
            "| quantity | published | here | met |\n| --- | ---: | ---: | :---: |\n"
            + "\n".join(rows)
            + f"{remark}\n\n**{self.verdict.capitalize()}.**\n"
        )


def within(value: float, error: float, target: float, errors: float = 4.0) -> bool:
    """Whether a value is so many standard errors from its target, at most.

    Four of them: 6e-5 is the probability that a right value is further off.
    """
    return abs(value - target) <= errors * error
