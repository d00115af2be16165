"""Results show themselves in a real notebook: a table with columns, a verdict, a figure."""

from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")  # with ipykernel, of the extra `docs`
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")

CELLS = (
    "import torch\nimport pyro_vae as pv\ntorch.manual_seed(0)\ny = torch.randn(40, 3)",
    "model = pv.models.VAE(pv.nets.MLPDecoder(1, 3), pv.likelihoods.Gaussian(), latent_dim=1)\n"
    "guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(3)))\n"
    "pv.fit(model, guide, y, num_epochs=2)",
    "pv.log_marginal_likelihood(model, guide, y, pv.Quadrature()).mean",
    "pv.inference_gap(model, guide, y[:10])",
    "%matplotlib inline\n_.plot();",
)


def executed(*cells: str) -> Any:
    """A notebook with the outputs of its cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    return nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()


@pytest.mark.slow
def test_bars_without_widgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel without ipywidgets shows bars of text, and warns of nothing."""
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    done = executed("import sys\nsys.modules['ipywidgets'] = None", *CELLS[:2])

    def errors(cell: int) -> str:
        found = done.cells[cell].outputs
        return "".join(out["text"] for out in found if out.get("name") == "stderr")

    assert errors(1) == ""
    assert "2/2" in errors(2)
    assert "ELBO" in errors(2)


@pytest.mark.slow
def test_results_in_a_notebook() -> None:
    """Each form is there, as HTML, and the figure as a picture."""
    done = executed(*CELLS)

    def outputs(cell: int, kind: str) -> list[Any]:
        return [
            out["data"][kind] for out in done.cells[cell].outputs if kind in out.get("data", ())
        ]

    assert outputs(1, "text/html")[-1].startswith("<p>finished after 2 epochs")
    assert "±" in outputs(2, "text/html")[0]
    gap = outputs(3, "text/html")[0]
    assert 'text-align:left">nats per datum</th>' in gap
    assert "</table></div><p>" in gap
    assert "<img alt=" in gap
    assert not outputs(3, "image/png"), "the figure is shown only once"
    assert outputs(4, "image/png")
