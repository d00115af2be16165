"""Saves a comparison to a folder: table, figures, ArviZ data, models, and an HTML page."""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .. import storage
from .._types import install_line, is_importable, optional
from .._warnings import warn
from ..writing import Kind, whole_folder
from ..writing import require_place as require_place_for
from .reporting import report_of, title_of

if TYPE_CHECKING:
    from .comparison import Comparison

_FILES = {"report.html", "table.csv", "summary.txt", "run.json"}
_FOLDERS = {_MODELS := "models", _FIXED := "fixed_model"}
# Names that Windows takes for devices.
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# Files that need an optional package, and the packages; any one of them is enough.
_OPTIONAL = {"figures (*.png)": ("matplotlib",), "ArviZ data (*.nc)": ("h5netcdf", "netCDF4")}
_LONGEST = 160  # bytes of a file name without its ending; systems allow 255 in all


def save_comparison(table: "Comparison", folder: Path, fixed: "Comparison | None") -> Path:
    """Writes a comparison and, if given, the comparison with a fixed model."""
    tables = {title_of(table): table}
    with whole_folder(_place(folder)) as new:
        _write(table, new)
        if fixed is not None:
            place = new / _FIXED
            place.mkdir()
            _write(fixed, place)
            tables[f"The model trained with '{next(iter(table.results))}', fixed"] = fixed
        (new / "report.html").write_text(report_of(tables).html(), encoding="utf-8")
    if missing := missing_packages():
        warn(
            f"'{folder}' was saved without {' and '.join(missing)}, because Python cannot import "
            f"{' and '.join(missing.values())}: run `{install_line(*missing.values())}`, and save "
            "the comparison again"
        )
    return folder


def _write(table: "Comparison", folder: Path) -> None:
    """Writes into a new folder all files of a comparison, except the HTML page."""
    table.save_table(folder / "table.csv")
    (folder / "summary.txt").write_text(table.summary() + "\n", encoding="utf-8")
    (folder / "run.json").write_text(json.dumps(table.provenance(), indent=2) + "\n")
    for name, png in table.pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    files = file_names(table.results)
    if "h5netcdf" not in missing_packages().values():
        for name, data in table.to_inference_data().items():
            data.to_netcdf(str(folder / f"{files[name]}.nc"))
    about = table.provenance()["about"]
    for name, result in table.results.items():
        place = folder / _MODELS / files[name]
        training = replace(result.fit, log_scale=table.train_log_scale)
        test = result.test.shifted(torch.tensor(table.log_scale, device="cpu"))
        notes = {**about, "training": training.summary(), "evaluation": test.summary()}
        storage.save(place, model=result.model, guide=result.guide, about=notes)


def file_names(names: Iterable[str]) -> dict[str, str]:
    """Returns a file name for each name. All file names differ, even if case is ignored.

    Letters and digits of any script stay, and everything else becomes a dash. A name that is
    already taken gets a number.

    Example:
        >>> file_names(["a b", "a-b", "A.B", "..", "con", "гайд"]).values()
        dict_values(['a-b', 'a-b-2', 'A.B', 'guide', 'guide-con', 'гайд'])
    """
    taken: set[str] = set()
    files = {}
    for name in names:
        plain = unicodedata.normalize("NFC", name)
        letters = re.sub(r"[^\w.-]+", "-", plain).encode()[:_LONGEST].decode(errors="ignore")
        stem = letters.strip(".-") or "guide"
        stem = f"guide-{stem}" if _DEVICES.fullmatch(stem) else stem
        numbered = (f"{stem}-{number}" for number in itertools.count(2))
        choices = itertools.chain([stem], numbered)
        files[name] = next(file for file in choices if file.casefold() not in taken)
        taken.add(files[name].casefold())
    return files


def missing_packages() -> dict[str, str]:
    """Returns the missing package for each kind of file that cannot be saved."""
    return {
        files: packages[0]
        for files, packages in _OPTIONAL.items()
        if not any(map(is_importable, packages))
    }


def require_place(folder: Path) -> Path:
    """Refuses a folder in which a comparison cannot be saved, before anything is trained.

    Raises:
        ValueError: If the folder cannot be written, or holds anything but a comparison.
        ImportError: If figures or ArviZ data need a missing package; the message names the extra
            that installs it.
    """
    for package in missing_packages().values():
        optional(package, needed_for=f"'{folder}'")
    return _place(folder)


def _place(folder: Path) -> Path:
    """Refuses a folder that cannot be written, or that holds anything but a comparison."""

    def is_ours(name: str) -> bool:
        return name in {*_FILES, *_FOLDERS} or name.endswith((".png", ".nc"))

    kind = Kind("a comparison", {"run.json", "table.csv"}, is_ours)
    return require_place_for(folder, kind)
