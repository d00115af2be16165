"""`llms.txt`: public names with a sentence each, for people who code with a language model."""

from pathlib import Path

from public_names import PAGES, Name, public_names

USAGE = Path(__file__).parent.parent / "for_assistants.md"


def llms_text() -> str:
    """The text of `llms.txt`: correct usage, which the tests run, and then every public name."""
    _, _, usage = USAGE.read_text(encoding="utf-8").partition("<!-- llms.txt begins -->\n")
    parts = ["# pyro_vae", usage.strip(), "## Every public name", *map(_page, PAGES)]
    return "\n\n".join(parts) + "\n"


def _page(page: str) -> str:
    names = [name for name in public_names() if name.page == page]
    return "\n".join([f"### {PAGES[page]}", "", *map(_line, names)])


def _line(name: Name) -> str:
    return f"- `{name.short}`: {name.sentence}"
