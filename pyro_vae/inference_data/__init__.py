"""Draws of a guide, with what their weights say, as ArviZ keeps, summarizes and plots them."""

from .arrays import Labelled as Labelled
from .arrays import build as build
from .draws import to_inference_data as to_inference_data

__all__ = ["Labelled", "build", "to_inference_data"]
