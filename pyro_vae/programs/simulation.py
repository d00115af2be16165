"""Programs run forward: latents and the data that they simulate."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from .._types import Batch
from .missing import has_missing
from .modes import forked_seed
from .plates import whole_plate
from .program import Program


def simulate(program: Program, rows: Batch, seed: int) -> tuple[Tensor, Batch]:
    """Latents `(batch, latents)` drawn from the program, and the batch that they simulate.

    Run again on its own simulation, with the same random numbers, the program must draw the
    same; if not, it reads its data elsewhere, and the latents are no draw from the posterior.
    """
    first = _forward(program, rows, seed)
    batch = written(program, rows, first)
    second = _forward(program, batch, seed)
    names = [*(site.name for site in program.latent_sites), *program.observed_names]
    for name in names:
        same = torch.equal(first[name]["value"], second[name]["value"])
        if not same or not torch.equal(first[name]["log_prob"], second[name]["log_prob"]):
            raise ValueError(
                f"site '{name}' depends on data that the program observes, by another way than "
                "its own draws, so the program cannot be simulated row by row; let later sites "
                "use the values that pyro.sample returns instead of the batch's"
            )
    values = {site.name: first[site.name]["value"] for site in program.latent_sites}
    return program.flatten(values)[0], batch


def _forward(program: Program, rows: Batch, seed: int) -> dict[str, Any]:
    """Sites of the program with nothing observed."""
    model = poutine.condition(program.model, data=program.fixed)
    free = Free(frozenset(program.observed_names))
    with forked_seed(seed), poutine.block(), whole_plate(len(rows[0]), program.plate), free:
        trace = poutine.trace(model).get_trace(*rows)
    trace.compute_log_prob()
    return dict(trace.nodes)


class Free(Messenger):
    """Lets named sites be drawn, whatever the program says it observes there."""

    def __init__(self, names: frozenset[str]) -> None:
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg.update(is_observed=False, value=None, done=False)


def written(program: Program, rows: Batch, drawn: dict[str, Any]) -> Batch:
    """The batch with what was drawn in place of what is observed."""
    batch = tuple(part.clone() for part in rows)
    with poutine.block(), whole_plate(len(batch[0]), program.plate):
        model = poutine.condition(program.model, data=program.fixed)
        nodes: dict[str, Any] = dict(poutine.trace(model).get_trace(*batch).nodes)
    for name in program.observed_names:
        observed, value = nodes[name]["value"], drawn[name]["value"]
        if not _is_part(observed, batch) or observed.shape != value.shape:
            raise ValueError(
                f"site '{name}' observes something computed from the batch, so what it draws "
                "cannot be put in its place: give the model the tensor that it observes"
            )
        if has_missing(observed):  # what was not observed stays so
            value = value.masked_fill(observed.isnan(), torch.nan)
        observed.copy_(value)
    return batch


def _is_part(observed: Tensor, batch: Batch) -> bool:
    """Whether each entry is one entry of the batch, so that writing it changes the batch."""
    storages = {part.untyped_storage().data_ptr() for part in batch}
    repeated = any(s == 0 and n > 1 for s, n in zip(observed.stride(), observed.shape, strict=True))
    return observed.untyped_storage().data_ptr() in storages and not repeated
