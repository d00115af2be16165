"""What the networks have in common: activations, dense layers, and a check of widths."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

Activation = type[nn.Module]


def activations() -> dict[str, Activation]:
    """Activations that a saved network may name."""
    names = ("ELU", "GELU", "LeakyReLU", "ReLU", "SiLU", "Sigmoid", "Softplus", "Tanh")
    return {name: getattr(torch.nn, name) for name in names}


def dense_layers(sizes: Sequence[int], activation: Activation) -> nn.Sequential:
    """Linear layers of these sizes, each followed by the activation."""
    layers = [
        layer
        for fan_in, fan_out in itertools.pairwise(sizes)
        for layer in (nn.Linear(fan_in, fan_out), activation())
    ]
    return nn.Sequential(*layers)


def check_width(name: str, flat: Tensor, expected: int, shape: tuple[int, ...]) -> None:
    """Refuses rows of another width."""
    if flat.shape[-1] != expected:
        raise ValueError(
            f"{name} was made for {expected} numbers a row, got {flat.shape[-1]} "
            f"(input of shape {shape}, rows first)"
        )
