"""Pyro programs as densities: unscaled, per datum, over one flat vector of latents."""

from .._arguments import check_public
from .copies import Copies as Copies
from .copies import SelfContained as SelfContained
from .copies import copied as copied
from .copies import no_new_parameters as no_new_parameters
from .edges import bounds_of as bounds_of
from .edges import draw_unconstrained as draw_unconstrained
from .edges import entry_of as entry_of
from .edges import log_prob_at as log_prob_at
from .edges import support_of as support_of
from .enumeration import Combinations as Combinations
from .hooks import ModelHooks as ModelHooks
from .hooks import hooks_of as hooks_of
from .hooks import name_of as name_of
from .hooks import owner_of as owner_of
from .log_probs import even_pieces as even_pieces
from .log_probs import log_prob_of as log_prob_of
from .masks import base_of as base_of
from .masks import unmasked as unmasked
from .missing import PartlyObserved as PartlyObserved
from .missing import has_missing as has_missing
from .missing import sample_missing as sample_missing
from .mixing import require_separate_rows as require_separate_rows
from .modes import NamedModule as NamedModule
from .modes import as_batch as as_batch
from .modes import capturing as capturing
from .modes import capturing_data as capturing_data
from .modes import device_of as device_of
from .modes import evaluating as evaluating
from .modes import import_compiler as import_compiler
from .modes import local_parameters as local_parameters
from .modes import modules_of as modules_of
from .modes import reached_by as reached_by
from .modes import require_arrays as require_arrays
from .modes import require_cache as require_cache
from .plates import Minibatch as Minibatch
from .plates import batch_scale as batch_scale
from .plates import current_minibatch as current_minibatch
from .plates import minibatch as minibatch
from .plates import outside_minibatch as outside_minibatch
from .plates import whole_plate as whole_plate
from .polynomials import degree_of as degree_of
from .program import Density as Density
from .program import LogDensities as LogDensities
from .program import Program as Program
from .program import log_joint as log_joint
from .running import Counted as Counted
from .running import bytes_per_row as bytes_per_row
from .running import rows_within as rows_within
from .running import threads_for as threads_for
from .simulation import Prior as Prior
from .simulation import feature_distribution as feature_distribution
from .simulation import replicated as replicated
from .simulation import simulate as simulate
from .simulation import with_observed as with_observed
from .sites import GlobalSite as GlobalSite
from .sites import LatentSite as LatentSite
from .structure import partly_observed as partly_observed
from .traces import Run as Run
from .traces import TracedSite as TracedSite
from .traces import leaves_of as leaves_of
from .traces import own_messages as own_messages
from .traces import repeat_rows as repeat_rows
from .traces import retry_unvalidated as retry_unvalidated
from .traces import run as run
from .traces import sum_but as sum_but
from .traces import total_log_prob as total_log_prob

__all__ = [
    "Combinations",
    "Copies",
    "Counted",
    "Density",
    "GlobalSite",
    "LatentSite",
    "LogDensities",
    "Minibatch",
    "ModelHooks",
    "NamedModule",
    "PartlyObserved",
    "Prior",
    "Program",
    "Run",
    "SelfContained",
    "TracedSite",
    "as_batch",
    "batch_scale",
    "bounds_of",
    "bytes_per_row",
    "capturing",
    "capturing_data",
    "copied",
    "current_minibatch",
    "degree_of",
    "device_of",
    "draw_unconstrained",
    "entry_of",
    "evaluating",
    "even_pieces",
    "has_missing",
    "hooks_of",
    "leaves_of",
    "local_parameters",
    "log_joint",
    "log_prob_at",
    "log_prob_of",
    "minibatch",
    "modules_of",
    "no_new_parameters",
    "outside_minibatch",
    "own_messages",
    "partly_observed",
    "reached_by",
    "repeat_rows",
    "require_arrays",
    "require_separate_rows",
    "retry_unvalidated",
    "run",
    "sample_missing",
    "simulate",
    "sum_but",
    "support_of",
    "threads_for",
    "total_log_prob",
    "unmasked",
    "whole_plate",
    "with_observed",
]

check_public(globals())
