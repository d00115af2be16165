"""The k-hat that sbi reports for a variational posterior: of the weights, not of their excess."""

import torch

import pyro_vae as pv

from ..peers import TORCH, written_by
from ..record import Claim, Finding

REQUIREMENTS = (TORCH, "sbi==0.27.0")
CLAIM = Claim(
    title="sbi fits k-hat to the largest weights, and not to their excess over the threshold",
    source="sbi 0.27.0: `psis_diagnostics`, which `VIPosterior.evaluate` reports as its quality",
    setting=(
        "The target is N(0, I) in two dimensions and q is N(0, s^2 I), so that the weights are "
        "exactly Pareto with k = 1 - s^2. There are 20 repeats with 10,000 draws each. Our k-hat "
        "is from `pv.audit`, with the log densities of the same draws."
    ),
    criterion="The mean k-hat is within 0.1 of the exact k, for each of five widths of q.",
    remark=(
        "A generalized Pareto distribution should be fitted to the excess of the largest weights "
        "over a threshold. sbi fits it to the weights themselves, which start at the threshold "
        "instead of at 0. The same function is right when it is given the excess (values in "
        "brackets). The message beside the number says that a k-hat below 0.5 is good. Every q "
        "tried passes, even the q with k = 0.9, whose weights have infinite variance. Among "
        "posteriors for the same data, a smaller value still means a lighter tail. The code had "
        "been read before the criterion was written."
    ),
)


def findings(*, smoke: bool = False) -> list[Finding]:
    """Its k-hat beside ours and the exact one."""
    peer = written_by("sbi_psis", *REQUIREMENTS)
    repeats = 2 if smoke else len(peer["joint"])
    ours = torch.stack(
        [
            pv.audit(joint.mT, guide.mT).log_marginal.pareto_k
            for joint, guide in zip(peer["joint"][:repeats], peer["guide"][:repeats], strict=True)
        ]
    )
    theirs, mended, mine = (
        pv.stats.mean_estimate(part) for part in (peer["reported"], peer["excess"], ours)
    )
    return [
        Finding(
            f"k-hat of q with variance {variance:g}, whose exact k is {1 - variance:.1f}",
            f"{theirs.value[place]:.2f} ± {theirs.error[place]:.2f} ({mended.value[place]:.2f})",
            f"{mine.value[place]:.2f} ± {mine.error[place]:.2f}",
            abs(float(theirs.value[place]) - (1 - variance)) < 0.1,
        )
        for place, variance in enumerate(peer["variances"].tolist())
    ]
