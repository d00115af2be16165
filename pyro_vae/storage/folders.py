"""A folder that holds a model and a guide: `pyro_vae.json`, and one safetensors file per object.

The JSON file says how to rebuild the objects, and holds a digest of each tensor file, so that files
of different saves cannot be mixed. The folder is written atomically.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.distributions.constraints import Constraint

from .._types import ProgramLike
from ..formatting import first_few
from ..guides.entry import model_of
from ..randomness import forked
from ..results import Result
from ..writing import Kind, existing_folder, require_place, whole_folder
from .cards import CARD, card
from .limits import MAX_HEADER, Budget, is_whole, require_few_objects
from .parts import Part, check_types, describe, differences, module_of, rebuild, tensors_of
from .store import constraint_from_json, fill_store, read_store

JSON: TypeAlias = str | int | float | bool | Sequence[Any] | Mapping[str, Any] | None
"""Values that JSON can hold."""

HEADER = "pyro_vae.json"
FORMAT, FORMAT_VERSION = "pyro_vae", 1
ROLES = ("model", "guide")
STORE = "store"
_OWN = f"{__name__.partition('.')[0]}."  # the beginning of the full names of the library's classes
_LONGEST_ERROR = 2000  # characters
FILES = {HEADER, CARD, *(f"{role}.safetensors" for role in (*ROLES, STORE))}


class Loaded(NamedTuple):
    """A model and its guide; the guide is `None` if none was saved."""

    model: Any
    guide: Any


def save(
    folder: str | Path,
    *,
    model: ProgramLike,
    guide: ProgramLike | None = None,
    about: Mapping[str, JSON | Result] | None = None,
) -> None:
    """Saves a model and a guide to a folder of their own; loading the folder runs no code.

    All tensors of the modules' `state_dict` are saved, and for a `LocalParameters` table also the
    state of the table's optimizer. The structure of the library's classes and torch's layers is
    saved too, so that :func:`load` can rebuild them. For your own classes and functions only the
    tensors are saved, and :func:`load` fills them into an object that you build.

    A model card is written to `README.md` in the folder. The card describes the class, likelihood
    and sizes, the columns with their centres and scales, and the notes in `about`.

    If the model or the guide is a class or function of your own, which may use Pyro's parameter
    store, all parameters in the store are saved, too. :func:`load` puts them back, in place of
    parameters of the same names.

    Not saved: the optimizer of the networks, and `guide.row_fit`.

    Arguments:
        folder: A folder that is used for this save only; it is created if it does not exist. An
            older save in this folder is replaced once the new save is complete.
        model: A Pyro program.
        guide: A :class:`pyro_vae.Guide` for that model, or a guide program written by hand.
        about: Notes for the card, which :func:`read_about` reads back: strings, numbers, lists, and
            results. Results of :func:`pyro_vae.fit` and :func:`pyro_vae.evaluate` are saved as
            summaries, which say how training ended and which numbers can be trusted.

    Raises:
        ValueError: If the folder holds anything but a save, if the guide was made for another
            model, if `about` cannot be written as JSON, or if a trained tensor is in no module.

    Example:
        >>> import tempfile
        >>> from pyro_vae import likelihoods, models, nets
        >>> decoder = nets.MLPDecoder(latent_dim=2, shape=3)
        >>> model = models.VAE(decoder, likelihoods.Bernoulli(), latent_dim=2)
        >>> folder = Path(tempfile.mkdtemp()) / "my_model"
        >>> save(folder, model=model, about={"data": "three coins"})
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'model.safetensors', 'pyro_vae.json']
    """
    from .. import __version__  # set once the package is imported

    if model_of(guide) not in (None, model):
        raise ValueError(
            "the guide must be made for the model that is saved, because loading connects guide "
            "and model: pass model=guide.model, or make the guide for this model"
        )
    target = require_place_for_model(Path(folder))
    programs = {"model": model} if guide is None else {"model": model, "guide": guide}
    contents = {
        role: safetensors.torch.save(tensors_of(role, program))
        for role, program in programs.items()
    }
    parts = describe(programs)
    header: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "library_version": __version__,
        "about": require_notes(about or {}),
        **{part.role: asdict(part) for part in parts},
    }
    if any(part.architecture is None or not part.made_by.startswith(_OWN) for part in parts):
        rules, values = read_store(programs.values())
        if rules:
            contents[STORE], header[STORE] = safetensors.torch.save(values), {"constraints": rules}
    for role, content in contents.items():
        header[role]["sha256"] = hashlib.sha256(content).hexdigest()
    files = {f"{role}.safetensors": content for role, content in contents.items()}
    files[HEADER] = json.dumps(header, indent=1, allow_nan=False).encode()
    if len(files[HEADER]) > MAX_HEADER:
        raise ValueError(
            f"`about` must be shorter, because pyro_vae reads at most {MAX_HEADER:,} bytes of "
            f"{HEADER}; got {len(files[HEADER]):,} bytes: store large objects in separate files"
        )
    files[CARD] = card(programs, header).encode()
    with whole_folder(target) as new:
        for name, content in files.items():
            (new / name).write_bytes(content)


@torch.inference_mode(mode=False)  # otherwise the loaded parameters could not be trained
def load(
    folder: str | Path,
    *,
    model: ProgramLike | None = None,
    guide: ProgramLike | None = None,
    device: torch.device | str | None = None,
) -> Loaded:
    """Loads what :func:`save` saved; runs no code from the folder.

    The library's classes and torch's layers are rebuilt with bit-identical tensors, so the loaded
    programs give the same results. For your own programs, build the same objects and pass them: the
    saved tensors are filled in if names, shapes and dtypes agree.

    Arguments:
        folder: The folder that :func:`save` wrote.
        model: An object to fill with the saved tensors, instead of one built from the folder. If
            `guide` is a `Guide`, the default is that guide's model.
        guide: An object to fill with the saved tensors, instead of one built from the folder.
        device: Where to put the tensors. By default the tensors of rebuilt objects are on the CPU,
            and tensors of filled objects stay on their device.

    Returns:
        The model and the guide, which is `None` if none was saved. The result can be unpacked, as
        in `model, guide = load(folder)`.

    Raises:
        FileNotFoundError: If the folder does not exist, or one of its files is missing.
        ValueError: If the folder was not saved by this library, is damaged, or comes from a newer
            version; if a program cannot be rebuilt without code; or if the saved tensors do not fit
            a given object.

    Example:
        >>> import tempfile
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> decoder = nets.MLPDecoder(latent_dim=2, shape=3)
        >>> model = models.VAE(decoder, likelihoods.Bernoulli(), latent_dim=2)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> folder = Path(tempfile.mkdtemp()) / "my_model"
        >>> save(folder, model=model, guide=guide)
        >>> model_again, guide_again = load(folder)
        >>> y = torch.ones(5, 3)
        >>> bool((guide_again.mean(y) == guide.mean(y)).all())
        True
    """
    folder = Path(folder)
    header = _header(folder)
    parts = _parts(folder, header)
    if guide is not None and "guide" not in parts:
        raise ValueError(f"'{folder}' holds a model but no guide: load the model without `guide`")
    if model is None:
        model = model_of(guide)
    states = {role: _read_tensors(folder, role, parts[role][1]) for role in parts}
    stored, rules = _stored(folder, header)
    given = {"model": model, "guide": guide}
    for role, program in given.items():
        if program is not None:
            _check_fit(folder, role, program, states[role])
            module_of(program).to(device)
    made: dict[str, Any] = dict(given)
    with forked(0, "unused"):  # rebuilding draws initial values, which are then overwritten
        for role in (role for role in parts if given[role] is None):
            part, _ = parts[role]
            made[role] = _rebuilt(folder, part, states[role], made["model"], device)
    for role, program in given.items():
        if program is not None:
            module_of(program).load_state_dict(states[role])
    fill_store(stored, rules, device)
    return Loaded(**made)


def read_about(folder: str | Path) -> dict[str, Any]:
    """Returns the notes that :func:`save` stored with a model.

    Arguments:
        folder: The folder that :func:`save` wrote.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If the folder was not saved by this library, is damaged, or comes from a newer
            version.

    Example:
        >>> import tempfile
        >>> from pyro_vae import likelihoods, models
        >>> model = models.VAE(torch.nn.Linear(1, 3), likelihoods.Bernoulli(), latent_dim=1)
        >>> folder = Path(tempfile.mkdtemp()) / "my_model"
        >>> save(folder, model=model, about={"data": "three coins"})
        >>> read_about(folder)
        {'data': 'three coins'}
    """
    return _header(Path(folder))["about"]


def require_notes(about: Mapping[str, object]) -> dict[str, Any]:
    """Returns notes in the form to be saved: each result is replaced by its summary.

    Raises:
        ValueError: If an entry is neither JSON nor a result; the error names the entry.
    """
    notes = {
        name: value.summary() if isinstance(value, Result) else value
        for name, value in about.items()
    }
    for name, value in notes.items():
        try:
            json.dumps({name: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"pyro_vae cannot write `about[{name!r}]` as JSON ({error}): pass strings, finite "
                "numbers, True, False, None, lists and dicts of these (`.tolist()` for arrays), or "
                "a result of this library"
            ) from error
    return notes


def require_place_for_model(folder: Path) -> Path:
    """Refuses a folder to which :func:`save` cannot write a model.

    Raises:
        ValueError: If the folder cannot be written to, or holds anything but a saved model.
    """
    return require_place(folder, Kind("a model", {HEADER}, FILES.__contains__))


def _header(folder: Path) -> dict[str, Any]:
    """Reads the JSON file of a saved model; refuses a file that this version cannot read."""
    path = existing_folder(folder, "a folder that pyro_vae saved") / HEADER
    if not path.is_file():
        found = first_few(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise ValueError(
            f"'{folder}' does not look like a folder that pv.save wrote: it has no {HEADER} "
            f"(found: {found}): pass a folder that pv.save wrote"
        )
    if path.stat().st_size > MAX_HEADER:
        raise ValueError(
            f"'{path}' has {path.stat().st_size:,} bytes, but pyro_vae writes at most "
            f"{MAX_HEADER:,} to this file: copy the original folder again"
        )
    try:
        header = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"'{path}' is truncated or damaged, since it is not valid JSON ({error}): save the "
            "model again, or restore the folder from a backup"
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"'{path}' does not look like a file that pv.save wrote: "
            f'its "format" is not "{FORMAT}": '
            "pass a folder that pv.save wrote"
        )
    _check_version(path, header)
    _check_entry(path, "about", valid=isinstance(header.get("about"), dict))
    return header


def _check_version(path: Path, header: dict[str, Any]) -> None:
    """Refuses a format that is newer than this version of the library."""
    from .. import __version__  # set once the package is imported

    version: Any = header.get("format_version")
    _check_entry(path, "format_version", valid=type(version) is int and version >= 1)
    if version > FORMAT_VERSION:
        raise ValueError(
            f"'{path}' was saved by the newer version {header.get('library_version')} of pyro_vae "
            f"in format {version}, but version {__version__} reads formats up to {FORMAT_VERSION}: "
            "run `pip install --upgrade pyro-vae`"
        )


def _check_entry(path: Path, entry: str, *, valid: bool) -> None:
    """Refuses the JSON file of a saved model whose `entry` is not `valid`."""
    if not valid:
        raise ValueError(
            f"'{path}' is damaged: its entry \"{entry}\" is missing or of the wrong kind: "
            "copy the original folder again"
        )


def _parts(folder: Path, header: dict[str, Any]) -> dict[str, tuple[Part, str]]:
    """Returns the descriptions of model and guide, each with the digest of its tensor file."""
    path = folder / HEADER
    _check_entry(path, "model", valid="model" in header)
    return {role: _part(path, role, header[role]) for role in ROLES if role in header}


def _part(path: Path, role: str, entry: Any) -> tuple[Part, str]:
    """Returns the description in one entry of the JSON file, and the digest of the tensor file."""
    _check_entry(path, role, valid=isinstance(entry, dict) and isinstance(entry.get("sha256"), str))
    values = {name: value for name, value in entry.items() if name != "sha256"}
    try:
        check_types(Part, values)
        part = Part(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the entry \"{role}\" of '{path}' is damaged ({error}): copy the original folder again"
        ) from error
    _check_entry(path, role, valid=part.role == role)
    return part, entry["sha256"]


def _stored(
    folder: Path, header: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Constraint]]:
    """Reads the saved parameters of Pyro's store, and their constraints; both may be empty."""
    if STORE not in header:
        return {}, {}
    path, entry = folder / HEADER, header[STORE]
    valid = isinstance(entry, dict) and isinstance(entry.get("sha256"), str)
    _check_entry(path, STORE, valid=valid)
    values = _read_tensors(folder, STORE, entry["sha256"])
    rules = entry.get("constraints")
    _check_entry(path, STORE, valid=isinstance(rules, dict) and rules.keys() == values.keys())
    try:
        found = {name: constraint_from_json(rule) for name, rule in rules.items()}
    except ValueError as error:
        raise ValueError(
            f"the entry \"{STORE}\" of '{path}' is damaged ({error}): copy the original folder "
            "again"
        ) from error
    return values, found


def _read_tensors(folder: Path, role: str, digest: str) -> dict[str, Tensor]:
    """Reads the tensors of a model or guide into memory; refuses a file whose digest differs."""
    path = folder / f"{role}.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"'{path}' is missing, so the save in '{folder}' is incomplete: copy the original "
            "folder again"
        )
    found = ""
    if is_whole(path):
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != digest:
        raise ValueError(
            f"'{path}' is not the file that was saved together with {HEADER}: it is truncated or "
            "damaged, belongs to another save, or is not a safetensors file: copy the whole "
            "original folder again"
        )
    try:
        tensors = safetensors.torch.load_file(path)  # mapped, so it is read only when copied below
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"'{path}' is not a safetensors file, or it is damaged ({error}): copy the original "
            "folder again"
        ) from error
    # Copies have torch's memory alignment, which can affect the last bit of a matrix product.
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _check_fit(folder: Path, role: str, program: ProgramLike, state: dict[str, Tensor]) -> None:
    """Refuses a program that does not have the saved tensors' names, shapes and dtypes."""
    found = differences(module_of(program), state, with_dtypes=True)
    if found:
        raise ValueError(
            f"the {role} that was passed does not fit the {role} saved in '{folder}' ({found}): "
            f"build the {role} with the same arguments as the saved {role}"
        )


def _rebuilt(
    folder: Path,
    part: Part,
    state: dict[str, Tensor],
    model: Any,
    device: torch.device | str | None,
) -> Any:
    """Rebuilds the model or guide from its record and its tensors."""
    path = folder / HEADER
    if part.architecture is None:
        raise ValueError(
            f"pyro_vae cannot rebuild the {part.role} in '{folder}' (made by: {part.made_by}), "
            f"because a saved file holds no code: {part.reason}. Build the same {part.role} and "
            f"pass the object, as in load(folder, {part.role}={part.role}), so that the saved "
            "tensors are filled in"
        )
    try:
        require_few_objects(part.architecture, state)
        with Budget(state):
            return rebuild(part, state, model, device)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"pyro_vae cannot build the {part.role} from '{path}': {_printable(str(error))}"
        ) from error


def _printable(message: str) -> str:
    """Escapes and shortens an error message, because it may quote the content of a file."""
    text = message.encode(errors="backslashreplace").decode()
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."
