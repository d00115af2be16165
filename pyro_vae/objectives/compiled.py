"""A Pyro ELBO with compiled loss and gradient, for training loops written by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from .._types import ProgramLike
from ..compiling import Captured, NotCaptured
from ..compiling.graphs import compiled
from ..programs.missing import has_missing
from ..programs.modes import modules_of
from ..programs.plates import current_minibatch

_Form: TypeAlias = tuple[torch.Size, torch.dtype, bool]  # shape, dtype, has missing entries
_Key: TypeAlias = tuple[int, int, tuple[int, int] | None, tuple[_Form, ...]]


class CompiledELBO(ELBO):
    """An ELBO for `pyro.infer.SVI`, with compiled code for model, guide and gradient.

    The first step with a batch of given shapes runs eagerly. The second step captures and compiles
    the programs, which takes about ten seconds. Every later step runs the compiled code, without
    Pyro's handlers. With the same seed, a compiled step gives the same draws, loss and gradient as
    an eager step. For batches of another shape, the programs are captured again. If a program
    cannot be captured, for example because it branches on data or counts its calls, steps run
    eagerly, and the attribute `reason` says why.

    Arguments:
        elbo: One of Pyro's ELBOs with a differentiable loss, or one of :mod:`pyro_vae.objectives`.

    Example:
        >>> import torch
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> from pyro_vae import Encoder, Guide, likelihoods, models, nets
        >>> model = models.VAE(nets.MLPDecoder(1, 3), likelihoods.Gaussian(), latent_dim=1)
        >>> guide = Guide(model, Encoder(nets.MLPEncoder(3)))
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), CompiledELBO(Trace_ELBO()))
        >>> svi.step(torch.zeros(5, 3)) > 0
        True
        >>> pyro.clear_param_store()
    """

    def __init__(self, elbo: ELBO) -> None:
        super().__init__()
        self.elbo: Any = elbo
        self.reason = ""
        if not hasattr(elbo, "differentiable_loss"):  # of Pyro: RenyiELBO and TraceGraph_ELBO
            self.reason = (
                f"{type(elbo).__name__} has no `differentiable_loss` to compile. Use an objective "
                "of `pyro_vae.objectives`, or `Trace_ELBO`"
            )
        self._seen: dict[_Key, _Seen] = {}

    def differentiable_loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> Tensor:
        """The loss, computed eagerly: a differentiable scalar, in nats."""
        return self.elbo.differentiable_loss(model, guide, *batch)

    def loss(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> float:
        """The loss, computed eagerly, in nats."""
        return float(self.elbo.loss(model, guide, *batch))

    def loss_and_grads(self, model: ProgramLike, guide: ProgramLike, *batch: Tensor) -> float:
        """Computes the loss, in nats, and adds its gradients to the parameters' `grad`."""
        key = _key(model, guide, batch)
        seen = self._seen.get(key)
        if seen is None or self.reason or not seen.is_current:
            return self._eager(key, model, guide, batch)
        if seen.run is None:
            try:
                seen.run = self._compiled(seen, model, guide, batch)
            except NotCaptured as error:
                self.reason = str(error)
                return self._eager(key, model, guide, batch)
        return seen.replay(batch)

    def _get_trace(self, model: ProgramLike, guide: ProgramLike, args: Any, kwargs: Any) -> Any:
        """Returns traces of the model and the guide, for tools of Pyro that need traces."""
        return self.elbo._get_trace(model, guide, args, kwargs)

    def _eager(
        self, key: _Key, model: ProgramLike, guide: ProgramLike, batch: tuple[Tensor, ...]
    ) -> float:
        """Runs a step eagerly, and records which parameters the loss depends on."""
        with poutine.trace(param_only=True) as programs:
            loss = float(self.elbo.loss_and_grads(model, guide, *batch))
        if not self.reason:
            sites: dict[str, Any] = dict(programs.trace.nodes)
            tensors = {name: site["value"].unconstrained() for name, site in sites.items()}
            modules = modules_of(model) + modules_of(guide)
            modes = {part: part.training for module in modules for part in module.modules()}
            self._seen[key] = _Seen(tensors, modes)
        return loss

    def _compiled(
        self,
        seen: "_Seen",
        model: ProgramLike,
        guide: ProgramLike,
        batch: tuple[Tensor, ...],
    ) -> Captured:
        """Captures and compiles the loss and its gradients, for the parameters of an eager step."""

        def function(*part: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                loss = self.elbo.differentiable_loss(model, guide, *part)
                gradients = torch.autograd.grad(
                    loss, list(seen.tensors.values()), allow_unused=True, materialize_grads=True
                )
            return [loss.detach(), *gradients]

        with _nameless_rows():
            missing = any(map(has_missing, batch))
            return compiled(function, batch, missing=missing, check=True, modules=seen.modes)


@dataclass
class _Seen:
    """A step that was run eagerly, and its compiled graph.

    Arguments:
        tensors: The step's parameters, by their names in Pyro's store.
        modes: Whether each module of the programs was in training mode.
        run: The graph; `None` before the step is compiled.
    """

    tensors: dict[str, Tensor]
    modes: dict[nn.Module, bool]
    run: Captured | None = None

    @property
    def is_current(self) -> bool:
        """Whether the modules' modes, Pyro's parameters and the graph's tensors are unchanged."""
        if any(part.training != mode for part, mode in self.modes.items()):
            return False
        store = pyro.get_param_store()
        kept = dict(store.named_parameters())  # unconstrained
        return all(kept.get(name) is tensor for name, tensor in self.tensors.items()) and (
            self.run is None or self.run.is_current
        )

    def replay(self, batch: tuple[Tensor, ...]) -> float:
        """Runs the graph: adds gradients, registers the parameters with Pyro, returns the loss."""
        assert self.run is not None
        loss, *gradients = self.run(*batch)
        for (name, tensor), gradient in zip(self.tensors.items(), gradients, strict=True):
            pyro.param(name)
            tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        return loss.item()


def _key(model: ProgramLike, guide: ProgramLike, batch: tuple[Tensor, ...]) -> _Key:
    """Returns the key of a step: the programs, and the shapes and dtypes of the batch."""
    current = current_minibatch()
    rows = None if current is None else (len(current.rows), current.num_data)
    forms = tuple((part.shape, part.dtype, has_missing(part)) for part in batch)
    return (id(model), id(guide), rows, forms)


@contextmanager
def _nameless_rows() -> Iterator[None]:
    """Makes capturing fail, inside the block, for programs that use the batch's row numbers.

    Row numbers change in every step, but a captured graph would keep the numbers of one batch.
    """
    current = current_minibatch()
    if current is None:
        yield
        return
    rows, current.rows = current.rows, torch.arange(len(current.rows), device="meta")
    try:
        yield
    finally:
        current.rows = rows
