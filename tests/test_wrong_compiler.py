"""Under a compiler that gets numbers wrong, every answer is that of the program."""

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import pyro_vae as pv
from tests.helpers.graphs import images

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot be trusted")

Answer = Callable[[pv.models.VAE, pv.Guide, Tensor, bool], Tensor]


def evidence(model: pv.models.VAE, guide: pv.Guide, y: Tensor, compile: bool) -> Tensor:  # noqa: FBT001
    """Log p(y) by importance sampling."""
    method = pv.ImportanceSampling(60, compile=compile)
    return pv.log_marginal_likelihood(model, guide, y, method).value


def chains(model: pv.models.VAE, guide: pv.Guide, y: Tensor, compile: bool) -> Tensor:  # noqa: FBT001
    """Log p(y) by annealing."""
    method = pv.AnnealedImportanceSampling(4, 6, compile=compile)
    return pv.log_marginal_likelihood(model, guide, y, method).value


def rows(model: pv.models.VAE, guide: pv.Guide, y: Tensor, compile: bool) -> Tensor:  # noqa: FBT001
    """ELBOs of a fit to every datum."""
    fitting = pv.FitRows(max_steps=30, compile=compile)
    fit = guide.fit_rows(y, fitting).row_fit
    assert fit is not None
    return fit.elbo


def training(model: pv.models.VAE, guide: pv.Guide, y: Tensor, compile: bool) -> Tensor:  # noqa: FBT001
    """Weights after some steps."""
    pv.fit(model, guide, y, num_epochs=4, batch_size=3, compile=compile, progress=False)
    return torch.cat([part.detach().flatten() for part in model.parameters()])


def wrong_by(factor: float) -> Callable[..., Any]:
    """A compiler whose code gives every result times a factor."""

    def compiler(graph: Any, inputs: Any, **options: Any) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with torch.no_grad():
                return [
                    part * factor if torch.is_tensor(part) and part.is_floating_point() else part
                    for part in graph(*args)
                ]

        return run

    return compiler


def answered(answer: Answer, *, compile: bool) -> Tensor:
    """The answer for one model, guide and data."""
    torch.manual_seed(0)
    model, y = images()
    guide = pv.Guide(model, pv.Encoder(pv.nets.MLPEncoder(20, (16,))))
    return answer(model, guide, y, compile)


@pytest.mark.parametrize("answer", [evidence, chains, rows, training], ids=lambda f: f.__name__)
def test_wrong_numbers_of_a_compiler_are_not_used(
    answer: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundredth off: it is seen, said, and the program asked instead."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the compiler's own house
        compile_fx = import_module("torch._inductor.compile_fx")
    expected = answered(answer, compile=False)
    calls: list[float] = []

    def compiler(*args: Any, **options: Any) -> Any:
        calls.append(1.01)
        return wrong_by(1.01)(*args, **options)

    monkeypatch.setattr(compile_fx, "compile_fx", compiler)
    with pytest.warns(UserWarning, match="compiled"):
        found = answered(answer, compile=True)
    assert calls
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
