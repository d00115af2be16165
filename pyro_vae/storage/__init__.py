"""Saved models and guides: tensors in safetensors, the rest in JSON; nothing runs when loaded."""

from .._arguments import check_public
from .folders import JSON as JSON
from .folders import Kind as Kind
from .folders import Loaded as Loaded
from .folders import load as load
from .folders import read_about as read_about
from .folders import replaced as replaced
from .folders import require_place as require_place
from .folders import require_place_for_model as require_place_for_model
from .folders import save as save

__all__ = [
    "JSON",
    "Kind",
    "Loaded",
    "load",
    "read_about",
    "replaced",
    "require_place",
    "require_place_for_model",
    "save",
]

check_public(globals())
