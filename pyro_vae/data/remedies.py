"""Advice on columns for messages: arguments that can be typed in Python or on the command line."""

import csv
import re
import shlex
from collections.abc import Iterable


def drop_it(name: str) -> str:
    """Returns the advice to drop a column, for files and for data frames.

    Example:
        >>> drop_it("a b")
        "drop the column with drop=['a b'] (command line: --drop 'a b') or X.drop(columns=['a b'])"
    """
    return f"drop the column with {drop_all([name])} or X.drop(columns=[{name!r}])"


def drop_all(names: Iterable[str]) -> str:
    """Returns the arguments that drop columns, in Python and on the command line."""
    return f"drop={[*names]!r} (command line: {_flag('--drop', names)})"


def of_kind(name: str, kind: str) -> str:
    r"""Returns the arguments that declare a column's kind, in Python and on the command line.

    Example:
        >>> of_kind("dose, mg", "Real")
        'kinds={\'dose, mg\': Real} (command line: --kinds \'"dose, mg"=Real\')'
    """
    flag = _flag("--kinds", [name], f"={kind}")
    return f"kinds={{{name!r}: {kind}}} (command line: {flag})"


def missing_marks(marks: Iterable[str], name: str = "") -> str:
    """Returns the arguments that declare marks of missing entries, in one column or in all.

    Example:
        >>> missing_marks(["99"], "age")
        "layout=Layout(missing=['age=99']) (command line: --missing=age=99)"
    """
    words = [f"{name}={mark}" if name else str(mark) for mark in marks]
    return f"layout=Layout(missing={words!r}) (command line: --missing={typed(words)})"


def typed(names: Iterable[str], ending: str = "") -> str:
    """Joins names, each followed by `ending`, into one shell word; :func:`parts` splits the word.

    A name with a comma or a quotation mark is quoted as in a csv file.
    """
    quoted = (
        '"{}"'.format(name.replace('"', '""')) if re.search('[,"\n\r]', name) else name
        for name in names
    )
    return shlex.quote(",".join(name + ending for name in quoted))


def parts(text: str) -> list[str]:
    """Splits an argument of the command line at its commas, except in quoted parts.

    Example:
        >>> parts('id,"height, cm"')
        ['id', 'height, cm']
    """
    return next(csv.reader([text]), None) or [""]


def _flag(flag: str, names: Iterable[str], ending: str = "") -> str:
    """Returns a flag with its argument, joined by = if the argument begins with -."""
    word = typed(names, ending)
    return f"{flag}={word}" if word.lstrip("'").startswith("-") else f"{flag} {word}"
