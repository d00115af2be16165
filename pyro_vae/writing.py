"""Atomic writes: a file is written next to its final place, synced, and moved there in one step.

If writing is interrupted (a full disk, Ctrl-C, a killed process), the older file is still there. A
place that cannot be written to is refused before anything is computed.
"""

import csv
import ctypes
import errno
import os
import re
import secrets
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .formatting import first_few

_LONGEST = 200  # bytes of a name: file systems allow 255, and temporary names are longer
_TRIES = 20  # attempts, if other processes write to the same place
_FORMULA = re.compile("'*[=+\\-@\t\r]")  # spreadsheets evaluate cells that begin like this
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux


class Kind(NamedTuple):
    """A kind of folder that this library writes.

    Arguments:
        what: What is saved, in words, such as "a comparison".
        marks: Names of files that every folder of this kind has.
        is_ours: Whether a folder of this kind may contain a file of the given name.
    """

    what: str
    marks: set[str]
    is_ours: Callable[[str], bool]


def require_place(folder: Path, kind: Kind) -> Path:
    """Refuses a place where a folder cannot be written, before anything is computed.

    Arguments:
        folder: The folder to write. If it exists, it must be empty or hold content of `kind`.
        kind: What will be written, such as a saved model or a comparison.

    Raises:
        ValueError: If the place is a file, the current folder or the root folder, if nothing can be
            written there, if its name is not allowed, or if it holds other files.
    """
    folder = _resolved(folder)
    if folder.parent == folder:
        raise ValueError(
            f"'{folder}' is the root folder, which cannot be replaced: choose a folder inside it"
        )
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"'{folder}' {_what_is(folder)}, but {kind.what} is saved into a folder: choose a new "
            "folder"
        )
    if folder == Path.cwd():
        raise ValueError(
            f"'{folder}' is the current folder, which cannot be replaced: choose a folder inside it"
        )
    _require_above(folder)
    with _refusing(folder):
        found = {path.name for path in folder.iterdir()} if folder.exists() else set()
    others = {name for name in found if not kind.marks <= found or not kind.is_ours(name)}
    if others:
        raise ValueError(
            f"'{folder}' holds other files ({first_few(sorted(others))}), and saving replaces "
            "the whole folder: choose a new or empty folder, such as "
            f"'{folder / 'results'}'"
        )
    return folder


def require_file_place(path: Path) -> Path:
    """Refuses a place where a file cannot be written, before anything is computed.

    Raises:
        ValueError: If the place is a folder, a device or a pipe, if nothing can be written there,
            or if its name is not allowed.
    """
    path = _resolved(path)
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder: name a file, such as '{path / 'table.csv'}'")
    if path.exists() and not path.is_file():
        raise ValueError(
            f"'{path}' {_what_is(path)}, and a new file would take its place: name another file, "
            f"and copy the content of that file to '{path}' afterwards"
        )
    _require_above(path)
    return path


def existing_file(path: str | Path, expected: str) -> Path:
    """Returns the path of a file to read, if the file exists.

    Arguments:
        path: The path.
        expected: What the file should be, in words, such as "a table".

    Raises:
        FileNotFoundError: If there is no such file, or something else has this name.
        ValueError: If no file system allows the name.

    Example:
        >>> existing_file("no/such.csv", "a table")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: 'no/such.csv' does not exist, but must be a table: correct ...
    """
    return _existing(Path(path), Path.is_file, expected)


def existing_folder(path: str | Path, expected: str) -> Path:
    """Returns the path of a folder to read; restores the folder if replacing it was interrupted."""
    if not _resolved(Path(path)).exists():
        restored(Path(path))
    return _existing(Path(path), Path.is_dir, expected)


def _existing(path: Path, is_right: Callable[[Path], bool], expected: str) -> Path:
    _resolved(path)
    if is_right(path):
        return path
    if re.match(r"\w{2,}:/", str(path)):
        raise FileNotFoundError(
            f"'{path}' is an address, but must be {expected}: download the file, and pass its path"
        )
    raise FileNotFoundError(
        f"'{path}' {_what_is(path)}, but must be {expected}: correct the name, or change the "
        "current folder"
    )


def _what_is(path: Path) -> str:
    """Describes in words what is at a path."""
    if path.is_dir():
        return "is a folder"
    if path.is_file():
        return "is a file"
    return "is a device or a pipe" if path.exists() else "does not exist"


def _resolved(path: Path) -> Path:
    """Returns the absolute path; refuses a name that no file system allows."""
    for name in path.parts:
        if len(_encoded(name)) > _LONGEST:
            raise ValueError(
                f"'{name[:20]}...' has {len(_encoded(name)):,} bytes, but file names may have at "
                f"most {_LONGEST} here: use a shorter name"
            )
    with _refusing(path):
        whole = path.resolve()
        # exists() would hide a loop of links and, from Python 3.13 on, every other error.
        with suppress(FileNotFoundError, NotADirectoryError):
            whole.stat()
    return whole


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Refuses, inside the block, a path that the system cannot read, such as a loop of links."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = (isinstance(error, OSError) and error.strerror) or error
        raise ValueError(
            f"pyro_vae cannot use '{_start(path)}' ({why}): choose another place"
        ) from error


def _encoded(name: str) -> bytes:
    """Encodes a name for the file system; refuses a name that cannot be encoded."""
    if "\0" in name:
        raise ValueError(f"a name must not contain a zero byte; got {name!r}: choose another name")
    try:
        return os.fsencode(name)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a name must be text ({error.reason}); got {name!r}: choose another name"
        ) from error


def _start(path: Path) -> str:
    """Returns the start of a path, short enough for a message."""
    return str(path) if len(str(path)) <= _LONGEST else f"{str(path)[:50]}..."


def _require_above(path: Path) -> None:
    """Refuses a path if a trial shows that nothing can be created in its parent folder.

    Checking permissions would not be enough: the file system may be read-only, out of inodes, or
    one where nothing can be created, such as `/proc`.
    """
    above = next(folder for folder in path.parents if folder.exists())
    for name in () if path.exists() else path.relative_to(above).parts:
        if not is_visible(name):
            raise ValueError(
                f"a name must have visible characters; got {name!r}: choose another name"
            )
    try:
        if not above.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "a file")
        os.rmdir(tempfile.mkdtemp(prefix=".pyro_vae-", dir=above))
    except OSError as error:
        what = "a file" if not above.is_dir() else f"not writable ({error.strerror})"
        raise ValueError(
            f"pyro_vae cannot create '{_start(path)}', because '{_start(above)}' is {what}: choose "
            "another place"
        ) from error


def is_visible(name: str) -> bool:
    """Whether a name has visible characters.

    Example:
        >>> is_visible("année 1"), is_visible(" ")
        (True, False)
    """
    return any(unicodedata.category(letter)[0] not in "CZ" for letter in name)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file to write; at the end of the block, the file replaces `path`.

    Arguments:
        path: The file's final place; missing parent folders are created.

    Yields:
        The temporary path, with the same suffix.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with whole_file(path) as new:
        ...     _ = new.write_text("1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    path = require_file_place(path)
    new = path.with_name(f"{_beside(path.with_suffix(''), 'new').name}{path.suffix}")
    try:
        with _naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_left_over(path)
            yield new
            _sync(new)
            new.replace(path)
            _sync(path.parent)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def _naming(place: Path) -> Iterator[None]:
    """Adds the place and a remedy to errors of the operating system, such as a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        why, remedy = str(error.strerror), "choose another place"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            why += f", and {shutil.disk_usage(place.parent).free / 1e6:,.1f} MB are free there"
            remedy = "free some space, or name another disk"
        raise OSError(
            error.errno,
            f"pyro_vae could not write '{place}' ({why}), and left any older content unchanged: "
            f"{remedy}",
        ) from error


def _remove_left_over(path: Path) -> None:
    """Removes temporary files for this path that were left by processes that no longer run."""
    for left in path.parent.iterdir():
        name = left.name.removesuffix(path.suffix) if path.suffix else left.name
        if name.startswith(f".{path.stem}.new-") and not _writer_lives(left.with_name(name)):
            left.unlink(missing_ok=True)


def write_csv(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    """Writes rows of cells in UTF-8; the first row has the names of the columns.

    Words that a spreadsheet would evaluate as a formula get a leading apostrophe, which this
    library removes when it reads the file.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]
            for row in rows
        )


def without_apostrophe(cell: str) -> str:
    """Removes the apostrophe that keeps spreadsheets from evaluating a word, if there is one.

    Example:
        >>> without_apostrophe("'=1+1"), without_apostrophe("'tis"), without_apostrophe("'-5")
        ('=1+1', "'tis", "'-5")
    """
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def _is_formula(word: str) -> bool:
    """Whether a word, after any apostrophes, begins like a formula and is not a number."""
    if not _FORMULA.match(word):
        return False
    try:
        float(word)
    except ValueError:
        return True
    return False


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder to write into; after the block, the folder replaces `folder`.

    Where the system can exchange two names in one step, either the older or the new folder is in
    place at every moment. Elsewhere, the older folder is moved aside first, and :func:`restored`
    brings it back if the process ends in between.

    Arguments:
        folder: The folder's final place; missing parent folders are created.

    Yields:
        The temporary folder.
    """
    folder = _resolved(folder)
    new = _beside(folder, "new")
    try:
        with _naming(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            restored(folder)
            new.mkdir()
            yield new
            for path in [*sorted(new.rglob("*")), new]:
                _sync(path)
            _put(new, folder)
            _sync(folder.parent)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def restored(folder: Path) -> None:
    """Restores a folder whose replacement was never finished, and removes temporary folders."""
    folder = _resolved(folder)
    if not os.access(folder.parent, os.R_OK | os.X_OK):  # it does not exist, or is not readable
        return
    for path in folder.parent.iterdir():
        if not path.name.startswith(f".{folder.name}.") or _writer_lives(path):
            continue
        if path.name.startswith(f".{folder.name}.old-") and not folder.exists():
            path.rename(folder)
        elif path.name.startswith((f".{folder.name}.old-", f".{folder.name}.new-")):
            shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path, what: str) -> Path:
    return folder.with_name(f".{folder.name}.{what}-{os.getpid()}-{secrets.token_hex(4)}")


def _writer_lives(path: Path) -> bool:
    """Whether the process that made a temporary path is still running, as far as is known."""
    number = path.name.rpartition(".")[-1].split("-")[1:2]
    if os.name != "posix" or not number or not number[0].isdigit():
        return True
    with suppress(PermissionError):  # somebody else's process
        try:
            os.kill(int(number[0]), 0)
        except ProcessLookupError:
            return False
    return True


def _put(new: Path, folder: Path) -> None:
    """Moves a new folder to its place, even while other processes do the same."""
    for _ in range(_TRIES):
        if folder.exists() and _exchanged(new, folder):
            return  # the older folder has the temporary name now, and is removed by the caller
        old = _beside(folder, "old")
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except OSError as error:  # tries again only if another process interfered
            if error.errno not in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY):
                raise
        else:
            return
        finally:
            if old.exists() and not folder.exists():
                old.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    raise OSError(f"other processes are writing to '{folder}': choose another place")


def _exchanged(one: Path, other: Path) -> bool:
    """Exchanges the names of two folders in one step; returns False if the system cannot."""
    with suppress(OSError, AttributeError, TypeError):
        rename = ctypes.CDLL(None).renameat2
        names = (os.fsencode(one), os.fsencode(other))
        return bool(rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)
    return False


def _sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk.

    This does nothing for folders on Windows and on some network file systems, which cannot sync
    them.
    """
    with suppress(OSError) if path.is_dir() else nullcontext():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
