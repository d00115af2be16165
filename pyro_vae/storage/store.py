"""Saves the parameters, with their constraints, that your own programs keep in Pyro's store.

The store holds unconstrained values. A constraint is saved as its name in
`pyro.distributions.constraints`, with its bounds if it has any.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions.constraints import Constraint

from .._types import ProgramLike
from .._warnings import warn
from ..formatting import first_few
from ..programs.modes import modules_of

_NAMED = {name: one for name, one in vars(constraints).items() if isinstance(one, Constraint)}
_BOUNDED = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
    "half_open_interval": ("lower_bound", "upper_bound"),
}


def read_store(
    programs: Iterable[ProgramLike],
) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
    """Returns the constraints (in JSON) and copies of the values of parameters in Pyro's store.

    Parameters that belong to a module of one of the programs are left out.

    Warns:
        UserWarning: If a parameter has a constraint that cannot be saved.
    """
    store = pyro.get_param_store()
    modules = [module for program in programs for module in modules_of(program)]
    held = {p.data_ptr() for module in modules for p in module.parameters()}
    values = {name: p for name, p in store.named_parameters() if p.data_ptr() not in held}
    constraints_of = store.get_state()["constraints"]
    found = {name: constraint_to_json(constraints_of[name]) for name in values}
    rules = {name: rule for name, rule in found.items() if rule is not None}
    if left := [name for name in values if name not in rules]:
        warn(
            f"{first_few(map(repr, left))} in Pyro's store cannot be saved, because pv.save does "
            "not know the constraint: if the programs use it, save it too, with "
            "pyro.get_param_store().save('parameters.pt')"
        )
    copies = {name: values[name].detach().to("cpu", copy=True).contiguous() for name in rules}
    return rules, copies


def constraint_to_json(constraint: Constraint) -> dict[str, Any] | None:
    """Describes a constraint in JSON; returns None for a constraint of an unknown class.

    Example:
        >>> constraint_to_json(constraints.positive)
        {'name': 'positive'}
        >>> constraint_to_json(constraints.interval(0.0, 2.0))
        {'name': 'interval', 'bounds': [0.0, 2.0]}
        >>> constraint_to_json(constraints.real.__class__())  # a copy
        {'name': 'real'}
    """
    same = (name for name, one in _NAMED.items() if one is constraint)
    name = next(same, "real" if type(constraint) is type(constraints.real) else None)
    if name is not None:
        return {"name": name}
    if isinstance(constraint, constraints.independent):
        base = constraint_to_json(constraint.base_constraint)
        dims = constraint.reinterpreted_batch_ndims
        return base and {"name": "independent", "base": base, "dims": dims}
    for name, fields in _BOUNDED.items():
        if type(constraint) is getattr(constraints, name):
            bounds = [getattr(constraint, field) for field in fields]
            if all(not isinstance(bound, Tensor) or bound.numel() == 1 for bound in bounds):
                return {"name": name, "bounds": [float(bound) for bound in bounds]}
    return None


def constraint_from_json(entry: Any) -> Constraint:
    """Returns the constraint that :func:`constraint_to_json` described.

    Raises:
        ValueError: If the entry describes no constraint.

    Example:
        >>> constraint_from_json({"name": "independent", "base": {"name": "positive"}, "dims": 1})
        IndependentConstraint(GreaterThan(lower_bound=0.0), 1)
    """
    name = entry.get("name") if isinstance(entry, dict) else None
    if name in _NAMED:
        return _NAMED[name]
    if name == "independent" and type(entry.get("dims")) is int:
        return constraints.independent(constraint_from_json(entry.get("base")), entry["dims"])
    bounds = entry.get("bounds") if name in _BOUNDED else None
    if isinstance(bounds, list) and list(map(type, bounds)) == [float] * len(_BOUNDED[str(name)]):
        return getattr(constraints, str(name))(*bounds)
    raise ValueError(f"{entry!r} describes no constraint")


def fill_store(
    values: Mapping[str, Tensor],
    rules: Mapping[str, Constraint],
    device: torch.device | str | None,
) -> None:
    """Puts unconstrained parameters with their constraints into Pyro's store.

    Parameters of the same names are replaced.
    """
    store = pyro.get_param_store()
    for name in values:
        if name in store:
            del store[name]
    new = {name: value.to(device).requires_grad_() for name, value in values.items()}
    store.set_state({"params": new, "constraints": dict(rules)})
