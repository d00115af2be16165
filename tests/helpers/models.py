"""What every model has to do: work under every guide, and in a comparison."""

import copy
from collections.abc import Callable

import torch
from torch import nn

import pyro_vae as pv
from pyro_vae._types import Batch
from pyro_vae.guides import Family

MAPS: dict[str, Callable[[nn.Module, int], pv.InferenceMap]] = {
    "encoder": lambda net, _: pv.Encoder(net),
    "local": lambda _, rows: pv.LocalParameters(rows),
    "global": lambda *_: pv.GlobalParameters(),
    "refined": lambda net, _: pv.Refined(pv.Encoder(net), steps=2),
}


FAMILIES: tuple[Family, ...] = (pv.DiagonalNormal(), pv.FullRankNormal())


def assert_works_under_every_guide(
    model: pv.models.Generative,
    batch: Batch,
    net: Callable[[], nn.Module],
    families: tuple[Family, ...] = FAMILIES,
) -> None:
    """A model trains, every weight of it, and evaluates under each map with each family."""
    data = batch if len(batch) > 1 else batch[0]
    for name, make in MAPS.items():
        for family in families:
            mine = copy.deepcopy(model)
            guide = pv.Guide(mine, make(net(), len(batch[0])), family)
            pv.fit(mine, guide, data, num_epochs=1, batch_size=6, progress=False)
            for (which, old), new in zip(model.named_parameters(), mine.parameters(), strict=True):
                assert new.isfinite().all(), f"{which} under {name}"
                assert not torch.equal(old, new), f"{which} was not trained under {name}"
            lml = pv.log_marginal_likelihood(mine, guide, data, pv.ImportanceSampling(20))
            assert lml.value.isfinite().all(), name


def assert_compares(
    model: pv.models.Generative, batch: Batch, net: Callable[[], nn.Module]
) -> None:
    """The guides stand side by side in one table, with log p of each model."""
    data = batch if len(batch) > 1 else batch[0]
    table = pv.compare(
        model,
        {name: make(net(), len(batch[0])) for name, make in MAPS.items()},
        data,
        data,
        num_epochs=1,
        evaluation=pv.ImportanceSampling(20),
        estimator=pv.ImportanceSampling(20),
        progress=False,
    )
    for name in MAPS:
        assert name in table.summary()
        assert table.results[name].gap.log_marginal.value.isfinite().all()
