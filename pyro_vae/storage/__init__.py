"""Saves models and guides: tensors in safetensors, all else in JSON. Loading runs no saved code."""

from .._arguments import check_public
from .folders import JSON as JSON
from .folders import Loaded as Loaded
from .folders import load as load
from .folders import read_about as read_about
from .folders import save as save

check_public(globals())
