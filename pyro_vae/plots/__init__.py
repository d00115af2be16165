"""Figures of arrays: learning curves, reconstructions, the latent plane, Pareto k, comparisons.

Every function takes arrays (NumPy's or torch's, on any device), never models or guides; arrays of
several guides are passed in a mapping whose keys are the guides' names. Each function draws into
the given `ax`, and returns it; or it draws panels into the given `figure`, and returns a NumPy
array of their axes. The caller can then set titles, scales and sizes::

    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    plot_learning_curves(curves, ax=figure.subplots())
    figure.savefig("curves.png")

With an `ax` or a `figure`, pyplot is not even imported, and nothing has to be closed. Otherwise a
figure is opened through pyplot, so that a notebook shows it. It is then pyplot's current figure,
and the caller should close it. A figure of your own needs a layout engine, which makes room
for labels and legends: "constrained", or "compressed" if panels are square. rcParams are read and
never changed; :data:`STYLE` has the settings that make a figure of your own look like these.

A guide has the same colour and marker in each figure if it is at the same position in the mapping.
Colour-blind readers can tell the colours apart, and the markers differ in grey print, too.
"""

from .._arguments import check_public
from .checks import plot_pareto_k as plot_pareto_k
from .checks import plot_predictive_check as plot_predictive_check
from .checks import plot_rank_ecdf as plot_rank_ecdf
from .checks import plot_rank_histograms as plot_rank_histograms
from .drawing import STYLE as STYLE
from .estimates import plot_comparison as plot_comparison
from .estimates import plot_gap_shares as plot_gap_shares
from .estimates import plot_gaps as plot_gaps
from .estimates import plot_per_datum as plot_per_datum
from .latents import plot_aggregated_marginals as plot_aggregated_marginals
from .latents import plot_aggregated_plane as plot_aggregated_plane
from .latents import plot_collapse as plot_collapse
from .latents import plot_latent_plane as plot_latent_plane
from .learning import LearningCurve as LearningCurve
from .learning import plot_learning_curves as plot_learning_curves
from .learning import plot_rate_distortion as plot_rate_distortion
from .learning import plot_signal_to_noise as plot_signal_to_noise
from .queries import plot_conditional_density as plot_conditional_density
from .queries import plot_dependence as plot_dependence
from .queries import plot_imputation as plot_imputation
from .queries import plot_outliers as plot_outliers
from .queries import plot_similarity as plot_similarity
from .queries import plot_traversal as plot_traversal
from .reconstructions import plot_data as plot_data
from .reconstructions import plot_reconstructions as plot_reconstructions
from .tables import plot_effects as plot_effects
from .tables import plot_filled as plot_filled
from .tables import plot_walks as plot_walks

check_public(globals())
