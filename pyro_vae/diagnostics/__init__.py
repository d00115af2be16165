"""Diagnoses of guides and of the latent space: what z says about the data, and how well."""

from .collapse import active_units as active_units
from .information import MutualInformation as MutualInformation
from .information import log_aggregate as log_aggregate
from .information import mutual_information as mutual_information

__all__ = ["MutualInformation", "active_units", "log_aggregate", "mutual_information"]
