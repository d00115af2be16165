"""The model card: a description of a saved model for people, in a file beside its tensors.

Everything in the card is also in `pyro_vae.json`. The card is not read when a model is loaded.

References:
    | Model Cards for Model Reporting (Mitchell et al., 2019)
    | https://arxiv.org/abs/1810.03993
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from .._types import ProgramLike
from ..formatting import count_of
from ..guides.guide import is_made_of_map
from ..likelihoods import Likelihood, Mixed
from ..models import Generative
from ..models.base import Decoded
from ..programs.hooks import name_of
from .parts import module_of

CARD = "README.md"  # the file that web pages of models show first

_MOST_COLUMNS = 200  # largest number of columns listed, to keep a card readable
_MOST_LETTERS = 2000  # most characters of a note
UNITS = {"table", "units", "missing", "digests"}
"""Names of the notes that say how the data of a model were encoded."""


def card(programs: Mapping[str, ProgramLike], header: Mapping[str, Any]) -> str:
    """Returns the text of a model card, in Markdown.

    Arguments:
        programs: The model, and the guide if there is one, by role.
        header: The content of `pyro_vae.json`.

    Example:
        >>> from pyro_vae import likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(2, 3, hidden=(4,)), likelihoods.Bernoulli(), 2)
        >>> about = {"data": "three coins"}
        >>> print(card({"model": model}, {"library_version": "0.1.0", "about": about}))
        # VAE
        <BLANKLINE>
        Saved by pyro_vae 0.1.0; load the folder with `pv.load(folder)`.
        <BLANKLINE>
        ## Model
        <BLANKLINE>
        - **class**: VAE, 27 parameters
        - **likelihood**: Bernoulli()
        - **latent_dim**: 2
        <BLANKLINE>
        ## Notes
        <BLANKLINE>
        - **data**: three coins
        <BLANKLINE>
    """
    about = header["about"]
    columns = _columns(about) if set(about) >= UNITS else []
    notes = {name: value for name, value in about.items() if not (columns and name in UNITS)}
    loaded = "pv.TableVAE.load" if columns else "pv.load"
    saved = (
        f"Saved by pyro_vae {header['library_version']}; load the folder with `{loaded}(folder)`."
    )
    sections = {
        f"# {type(programs['model']).__name__}": [saved],
        "## Model": _items(_of_model(programs["model"])),
        "## Guide": _items(_of_guide(programs["guide"]) if "guide" in programs else {}),
        "## Columns": columns,
        "## Notes": _items(notes),
    }
    listed = ((title, list(lines)) for title, lines in sections.items())
    return "\n".join("\n".join([title, "", *lines, ""]) for title, lines in listed if lines)


def _of_model(model: ProgramLike) -> dict[str, str | int]:
    """Returns a model's class, likelihood and number of latents, as far as it has them."""
    found: dict[str, str | int] = {"class": _class(model)}
    if isinstance(model, Decoded):
        found["likelihood"] = _likelihood(model.likelihood)
    if isinstance(model, Generative):
        found["latent_dim"] = model.latent_dim
    return found


def _likelihood(likelihood: Likelihood) -> str:
    """Describes a likelihood; for a mixed one, counts the columns of each likelihood in it."""
    if not isinstance(likelihood, Mixed):
        return " ".join(repr(likelihood).split())
    counts = Counter(type(part).__name__ for part in likelihood.likelihoods)
    return f"Mixed, of {', '.join(f'{name} ({count:,})' for name, count in counts.items())}"


def _of_guide(guide: ProgramLike) -> dict[str, str]:
    """Returns a guide's class, and its map and family if it has them."""
    found = {"class": _class(guide)}
    if is_made_of_map(guide):
        found |= {"map": type(guide.map).__name__, "family": type(guide.family).__name__}
    return found


def _class(program: ProgramLike) -> str:
    """Returns the name of a program's class or function, and its number of parameters."""
    size = sum(parameter.numel() for parameter in module_of(program).parameters())
    return f"{name_of(program)}, {count_of(size, 'parameter', ',')}"


def _columns(notes: Mapping[str, Any]) -> list[str]:
    """Returns the lines of a Markdown table of the data's columns, with their centres and scales.

    The list is empty if the notes do not describe columns: a user's own notes may have the names
    that this library gives to its notes on columns.
    """
    seen, units = "has" if notes["missing"] else "has not", notes["units"]
    lines = ["| column | kind | centre | scale | categories |", "| --- | --- | --- | --- | --- |"]
    try:
        rows = list(_of_table(units) if notes["table"] else _of_scaling(units))
    except (AttributeError, IndexError, KeyError, TypeError):
        return []
    lines += [f"| {' | '.join(map(_plain, row))} |" for row in rows[:_MOST_COLUMNS]]
    if len(rows) > _MOST_COLUMNS:
        lines.append(f"\nand {len(rows) - _MOST_COLUMNS:,} more.")
    return [*lines, "", f"The encoder {seen} seen missing entries."]


def _of_table(units: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yields name, kind, centre, scale and categories of each column that `Columns` encoded."""
    for column in units["columns"]:
        words = ", ".join(map(str, column.get("categories", ())))
        yield column["name"], column["kind"], column.get("center"), column.get("scale"), words


def _of_scaling(units: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yields the entries of :func:`_of_table` for columns that `Scaling` encoded."""
    lists = [part for part in (units["names"], units["center"], units["scale"]) if part]
    for place in range(len(lists[0]) if lists else 0):
        name = units["names"][place] if units["names"] else place
        numbers = (units[part][place] if units[part] else None for part in ("center", "scale"))
        yield name, "number", *numbers, ""


def _items(notes: Mapping[str, Any]) -> Iterable[str]:
    """Yields a line of a Markdown list for each note."""
    for name, value in notes.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield f"- **{_plain(name)}**: {_plain(text)}"


def _plain(value: object) -> str:
    """Converts a value to one short line of Markdown, with HTML and `|` escaped; None gives ""."""
    written = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = "" if value is None else " ".join(written.split())
    short = text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]} ..."
    return escape(short, quote=False).replace("|", "\\|")
