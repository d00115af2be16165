"""The minimum in an environment that has the wheel alone: import, fit, evaluate, save, load.

Run as a script by `make release`; an argument says which extras are there. Without them whatever
needs one says which, and how to install it.
"""

import sys
import tempfile
from collections.abc import Callable

import torch

import pyro_vae as pv
from pyro_vae.comparisons import Comparison


def works() -> Comparison:
    """What needs no extra; a comparison, to be saved, which needs one."""
    y = torch.randn(40, 3)
    model = pv.models.VAE(pv.nets.MLPDecoder(2, 3), pv.likelihoods.Gaussian(), latent_dim=2)
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3)))
    pv.fit(model, guide, y, num_epochs=1, progress=False)
    before = pv.log_marginal_likelihood(model, guide, y[:5], pv.Quadrature(), progress=False)
    with tempfile.TemporaryDirectory() as folder:
        pv.save(f"{folder}/vae", model=model, guide=guide)
        model, guide = pv.load(f"{folder}/vae")
    after = pv.log_marginal_likelihood(model, guide, y[:5], pv.Quadrature(), progress=False)
    assert torch.equal(before.value, after.value)
    print(after.summary())
    maps = {"amortized": pv.Encoder(pv.nets.MLPEncoder(3)), "global": pv.GlobalParameters()}
    table = pv.compare(model, maps, y, y[:5], num_epochs=1, progress=False)
    print(table.verdict)
    return table


def named(call: Callable[[], object], extra: str) -> str:
    """What a call says that needs an extra: the line that installs it; or that it works."""
    said = "works"
    try:
        call()
    except ImportError as error:
        said = str(error)
    assert said == "works" or f"pip install 'pyro-vae[{extra}]'" in said, f"no remedy: {said}"
    return said


def main() -> None:
    """Tries both."""
    table = works()
    said = [
        named(pv.data.digits, "data"),
        named(lambda: pv.sklearn, "data"),
        named(lambda: pv.plots.plot_pareto_k({"k": torch.zeros(3)}), "plot"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        said.append(named(lambda: table.save(f"{folder}/results"), "plot"))
    print("\n".join(said))
    assert "[all]" not in sys.argv or set(said) == {"works"}


if __name__ == "__main__":
    main()
