r"""Several training steps per call: for a small model, the compiled step runs in a compiled loop.

For a small model, calling a compiled step from Python takes as long as the step itself. So the
step's graph becomes the body of a loop, which also gathers the batch and updates the parameters by
Adam,

.. math:: m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
    v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    \theta \leftarrow \theta - \frac{\alpha}{1 - \beta_1^t}
    \frac{m}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} .

Here :math:`\alpha` is the step size, t the number of the step, and
:math:`\beta_1, \beta_2, \epsilon` are Adam's constants. In the loop all parameters :math:`\theta`
form one vector, and so do the gradients g and the moments m and v. So the update is one operation,
which compiles faster than one per parameter. Joining the gradients takes a pass over memory, so
large models are trained without a loop. The loop ends before a step whose gradients are not finite.
A step that changes other tensors, such as the running averages of a batch norm, has no loop.

References:
    | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
    | https://arxiv.org/abs/1412.6980
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop_op
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.fx import Graph, GraphModule

from .._types import Batch
from ..programs.missing import has_missing
from .capturing import Captured, NotCaptured, capture
from .graphs import on_trial, require_agreement

STEPS = 64  # per call; Ctrl-C and checkpoints have to wait for the end of a call
_PARAMETERS = 2**16  # with more, joining the gradients takes longer than a call from Python
_PRODUCTS = 2**24  # parameters times rows: such a step takes a few milliseconds
_CHANGED = 6  # inputs of the loop that a step changes; they are the first


class Settings(NamedTuple):
    """Adam's settings, and the number of steps taken before a call of a loop."""

    rate: float
    betas: tuple[float, float]
    epsilon: float
    weight_decay: float
    steps: int

    def sizes(self, count: int) -> Tensor:
        """Step sizes, and corrections of the second moment, for the next steps, `(STEPS, 2)`."""
        first, second = self.betas
        after = range(self.steps + 1, self.steps + count + 1)
        pairs = [(self.rate / (1 - first**t), 1 / math.sqrt(1 - second**t)) for t in after]
        filled = pairs + pairs[-1:] * (STEPS - count)
        return torch.tensor(filled, dtype=torch.float32, device="cpu")

    def weights(self) -> Tensor:
        """The five constants of Adam's update that are the same in every step, `(5,)`."""
        first, second = self.betas
        factors = (1 - first, second, 1 - second, self.epsilon, self.weight_decay)
        return torch.tensor(factors, dtype=torch.float32, device="cpu")


_FIRST = Settings(0.0, (0.9, 0.999), 1e-8, 0.0, 0)  # for the test run of a loop


class Values(NamedTuple):
    """The ELBO and the loss of a datum, or sums of them over data, in nats."""

    elbo: float = 0.0
    loss: float = 0.0

    def plus(self, other: "Values", rows: int = 1) -> "Values":
        """Adds `rows` times another pair of ELBO and loss to this pair."""
        return Values(self.elbo + rows * other.elbo, self.loss + rows * other.loss)


class Taken(NamedTuple):
    """Steps taken in one call, sums of ELBO and loss so far, and the last step's ELBO per datum."""

    steps: int
    total: Values
    elbo: float


def is_small(parameters: Sequence[Tensor], rows: int) -> bool:
    """Whether a model is so small that a call from Python takes as long as a training step."""
    count = sum(part.numel() for part in parameters)
    kinds = {(part.device.type, part.dtype) for part in parameters}
    return kinds == {("cpu", torch.float32)} and count <= _PARAMETERS and count * rows <= _PRODUCTS


def looped(
    function: Callable[..., list[Tensor]],
    parameters: list[Tensor],
    data: Batch,
    rows: Tensor,
    modules: Iterable[nn.Module] = (),
) -> "Loop":
    """Captures a training step and compiles a loop over it, and changes nothing else.

    Arguments:
        function: A training step, as described for the argument `step` of :class:`Loop`.
        parameters: The tensors to update.
        data: The tensors of all rows of the data set.
        rows: Rows of one step, on which the results of loop and function are compared.
        modules: The modules that the function calls and may change.

    Raises:
        NotCaptured: If the step cannot be captured or compiled, if it changes running averages, or
            if the results differ.
    """
    batch, missing = [part.index_select(0, rows) for part in data], any(map(has_missing, data))
    with on_trial(modules) as again:
        step = capture(function, *batch, missing=missing)
        again()
        before = [part.detach().clone() for part in step.held]
        expected = function(*batch)[0][0]
        if not all(map(_are_equal, step.held, before)):
            raise NotCaptured("a step changes tensors that are not trained")
        loop = Loop(step, parameters, data, len(rows))
        again()
        require_agreement(expected, loop.elbo(rows))
    return loop


class Loop:
    """A compiled loop over training steps.

    Arguments:
        step: Maps a batch to a report and to the gradients of all parameters. The report, `(3,)` in
            float64, is the ELBO per datum, whether the loss is finite, and the loss per datum.
        parameters: The tensors to update.
        data: The tensors of all rows of the data set.
        size: Number of rows of a batch.

    Raises:
        NotCaptured: If a step uses views of the parameters, or the loop cannot be compiled.
    """

    def __init__(
        self, step: Captured, parameters: Sequence[Tensor], data: Batch, size: int
    ) -> None:
        self.step, self.parameters, self.data, self.size = step, list(parameters), data, size
        self.numbers = [part.numel() for part in parameters]
        places = {id(part): place for place, part in enumerate(parameters)}
        self.places = [places.get(id(part)) for part in step.held]
        pairs = zip(step.held, self.places, strict=True)
        self.others = [part.detach() for part, place in pairs if place is None]
        own = {part.untyped_storage().data_ptr() for part in parameters}
        if any(part.untyped_storage().data_ptr() in own for part in self.others):
            raise NotCaptured("a step uses views of trained tensors")
        joined = torch.cat([part.detach().reshape(-1) for part in parameters])
        vectors = [joined, joined.clone(), joined.clone()]
        inputs = self._inputs([torch.arange(size, device="cpu")], Values(), _FIRST, vectors)
        self._run = Captured(self._graph(inputs), ()).compiled(*inputs)

    def __call__(
        self, rows: Sequence[Tensor], total: Values, settings: Settings, *state: list[Tensor]
    ) -> Taken:
        """Takes all given steps; if one of them gives a non-finite number, takes none.

        Call it under `torch.no_grad()`.

        Arguments:
            rows: The rows of each step, for at most :data:`STEPS` steps.
            total: The sums of ELBO and loss so far.
            settings: Adam's settings.
            state: Parameters, first moments and second moments, all of which are changed.

        Returns:
            The number of steps taken, the new sums, and the last ELBO. If a step gives a non-finite
            number, `state` is not changed, the number is instead how many steps came before that
            step, and the sums and the ELBO have no meaning.
        """
        count, report, vectors = self._ran(rows, total, settings, *state)
        is_finite, elbo, *sums = report
        if not is_finite:
            return Taken(count - 1, Values(*sums), elbo)
        for parts, vector in zip(state, vectors, strict=True):
            torch._foreach_copy_(parts, _unflatten_dense_tensors(vector, parts))
        return Taken(count, Values(*sums), elbo)

    @torch.no_grad()
    def elbo(self, rows: Tensor) -> Tensor:
        """The ELBO of a batch, in nats per datum, computed by the loop without taking a step."""
        nothing = [torch.zeros_like(part) for part in self.parameters]
        _, report, _ = self._ran([rows], Values(), _FIRST, self.parameters, nothing, nothing)
        return torch.tensor(report[1], dtype=torch.float64, device="cpu")

    def _ran(
        self, rows: Sequence[Tensor], total: Values, settings: Settings, *state: list[Tensor]
    ) -> tuple[int, list[float], list[Tensor]]:
        """Runs the loop; returns how many steps began, the last report, and the updated vectors."""
        vectors = [_flatten_dense_tensors(parts) for parts in state]
        count, report, _, *new = self._run(*self._inputs(rows, total, settings, vectors))
        return int(count), report.tolist(), new

    def _inputs(
        self, rows: Sequence[Tensor], total: Values, settings: Settings, vectors: list[Tensor]
    ) -> list[Tensor]:
        """Returns the loop's inputs: first those that a step changes, then the constant ones."""
        report = torch.tensor([1.0, 0.0, *total], dtype=torch.float64, device="cpu")
        none, count = torch.tensor(0, device="cpu"), torch.tensor(len(rows), device="cpu")
        sizes = settings.sizes(len(rows))
        table = torch.cat([*rows, *[rows[0]] * (STEPS - len(rows))]).view(STEPS, self.size)
        fixed = [count, table, sizes, settings.weights(), *self.others, *self.data]
        return [none, report, sizes[0].clone(), *vectors, *fixed]

    def _graph(self, inputs: list[Tensor]) -> GraphModule:
        """Makes the loop's graph; it returns the new values of those inputs that a step changes."""
        root, graph = nn.Module(), Graph()
        captured = capture(self._body, *inputs), capture(_condition, *inputs)
        if any(part.held for part in captured):
            raise NotCaptured("a step creates tensors that a loop cannot hold")
        root.body, root.condition = (part.graph for part in captured)
        places = [graph.placeholder(f"input_{index}") for index in range(len(inputs))]
        body, condition = graph.get_attr("body"), graph.get_attr("condition")
        parts = (condition, body, tuple(places[:_CHANGED]), tuple(places[_CHANGED:]))
        found = graph.call_function(while_loop_op, parts)
        taken = [graph.call_function(operator.getitem, (found, i)) for i in range(_CHANGED)]
        graph.output(tuple(taken))
        return GraphModule(root, graph)

    def _body(
        self, taken: Tensor, report: Tensor, now: Tensor, theta: Tensor, m: Tensor, v: Tensor,
        count: Tensor, table: Tensor, sizes: Tensor, weights: Tensor, *rest: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Takes a step with Adam's update; returns the new values of the inputs that it changes."""
        others, data = rest[: len(self.others)], rest[len(self.others) :]
        rows = table.index_select(0, taken.reshape(1)).reshape(-1)
        batch = [part.index_select(0, rows) for part in data]
        found, *gradients = self.step.graph(*self._held(theta, others), *batch)
        g = torch.cat([gradient.reshape(-1) for gradient in gradients])
        is_finite = (found[1] > 0) & g.sum().isfinite()
        g = g + weights[4] * theta
        m = m + weights[0] * (g - m)
        v = weights[1] * v + weights[2] * g * g
        theta = theta - now[0] * m / (v.sqrt() * now[1] + weights[3])
        elbo, loss = found[0], found[2]
        sums = report[2] + self.size * elbo, report[3] + self.size * loss
        report = torch.stack([is_finite.double(), elbo, *sums])
        taken = taken + 1
        following = sizes.index_select(0, taken.clamp(max=STEPS - 1).reshape(1)).reshape(-1)
        return taken, report, following, theta, m, v

    def _held(self, theta: Tensor, others: Sequence[Tensor]) -> list[Tensor]:
        """Returns the tensors that the step's graph uses: slices of `theta`, and `others`."""
        pieces = [
            piece.view(part.shape)
            for piece, part in zip(theta.split(self.numbers), self.parameters, strict=True)
        ]
        left = iter(others)
        return [next(left) if place is None else pieces[place] for place in self.places]


def _condition(*inputs: Tensor) -> Tensor:
    """Whether the loop continues: steps remain, and all numbers so far are finite."""
    taken, report, count = inputs[0], inputs[1], inputs[_CHANGED]
    return (taken < count) & (report[0] > 0)


def _are_equal(now: Tensor, before: Tensor) -> bool:
    """Whether `now` equals `before` in every entry in which `now` is not nan."""
    return bool(((now == before) | now.isnan()).all())
