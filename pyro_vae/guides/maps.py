"""Inference maps: objects that give the parameters of a family.

A map turns a batch and the positions of its rows into a flat tensor `(batch, parameters)`. What the
parameters mean is defined by the family alone.
"""

import inspect
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .._types import Batch
from ..formatting import count_of
from ..nets.inputs import features_of, require_tensor
from ..nets.scaling import Drawn, standardizes, start_inputs
from ..programs import Program
from ..programs.missing import has_missing
from ..programs.modes import capturing
from ..programs.pieces import slices, take_rows
from ..randomness import row_digests
from ..registry import registered
from .families import ClosestNormal, Family

_ROWS_AT_ONCE = 4096  # most rows per call of a map without gradients; affects memory only


class InferenceMap(nn.Module):
    """An object that supplies the parameters of q(z_n) for every datum.

    A user-defined map creates its parameters in :meth:`setup` and uses them in :meth:`forward`::

        class Constant(pv.InferenceMap):
            def setup(self, num_parameters, initial):
                self.value = nn.Parameter(initial.clone())

            def forward(self, batch, rows):
                return self.value.expand(len(batch[0]), -1)
    """

    per_row = False
    """Whether the map works only for the rows it was trained on."""

    in_use = False
    """Whether the map belongs to a guide."""

    needs_unit_scale = True
    """Whether training may fail if columns of the data are far from unit scale."""

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Creates the map's own parameters; called once, when the family and the model are known.

        Arguments:
            num_parameters: Parameters per datum that the family needs.
            initial: Parameters `(parameters,)` for which q is close to the prior, with the model's
                dtype and device.
        """
        raise NotImplementedError

    def attach(self, program: Program, family: Family) -> None:
        """Receives the model's `Program` and the family; called before :meth:`setup`.

        By default this method does nothing. A map that needs the model or the family should store
        them in a tuple, because a module that is set as an attribute becomes a part of the map.
        """

    def surrogate(self) -> Float[Tensor, " batch"] | None:
        """Returns a term of the objective for every datum of the last call; by default `None`.

        A map whose output carries no gradient trains its parameters by the gradient of this term.
        The term is added to the ELBO, and its value is zero.
        """
        return None

    def remember(self, *batch: Tensor) -> None:
        """Receives the whole data set before training; by default does nothing."""

    def start_from(self, *batch: Tensor) -> None:
        """Receives some rows of the data set before training; by default does nothing."""

    def scale_steps(self, factor: float) -> None:
        """Receives each new learning rate, divided by the initial rate; by default does nothing."""

    def owns(self, leaf: Tensor) -> bool:
        """Whether the map itself updates a leaf of the loss's graph; if so, optimizers skip it."""
        return False

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Computes the parameters of q for a batch, `(batch, parameters)`.

        Arguments:
            batch: The tensors the guide was called with.
            rows: Positions of the batch's rows in the data set, or `None` if unknown.
        """
        raise NotImplementedError

    def infer(
        self, program: Program, batch: Batch, rows: Int[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch parameters"]:
        """Computes the parameters of q for a batch, given values of the global latent sites.

        The result depends on these values only if the map uses the model.

        Arguments:
            program: The model, with its global sites at these values.
            batch: The tensors the guide was called with.
            rows: Positions of the batch's rows in the data set, or `None` if unknown.
        """
        size = len(batch[0])
        whole = torch.is_grad_enabled() or self.per_row or size <= _ROWS_AT_ONCE
        parts = [slice(None)] if whole else slices(size, _ROWS_AT_ONCE)
        return torch.cat(
            [self(take_rows(batch, part), None if rows is None else rows[part]) for part in parts]
        )


@registered()
class Encoder(InferenceMap):
    r"""Amortized map: :math:`\lambda_n = \mathrm{net}(y_n)`, one network for all data.

    Arguments:
        net: A module that is called with the batch tensors and returns `(batch, parameters)`. A
            network with an attribute `num_features` (like those of :mod:`pyro_vae.nets`) returns
            `(batch, num_features)` instead. The encoder then adds a linear layer of the size that
            the family needs, so that the same network works with every family.

    Raises:
        ValueError: When called, if the network's output does not have the shape the family needs,
            or is nan for data that have missing entries.

    References:
        | Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        | https://arxiv.org/abs/1312.6114
    """

    drawn: Drawn

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.head: nn.Module = nn.Identity()
        self.num_parameters = 0

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Adds the last linear layer to a network with `num_features`; an existing layer is kept.

        The layer exists already if the model's prior is a mixture of the encoder's posteriors.
        Such a prior sets the encoder up before the guide does.

        Raises:
            ValueError: If the encoder was set up for another number of parameters.
        """
        if self.num_parameters == num_parameters:
            return
        if self.num_parameters:
            raise ValueError(
                f"this Encoder already gives {count_of(self.num_parameters, 'parameter')} per "
                "datum, for another guide or a prior, but this family needs "
                f"{count_of(num_parameters, 'parameter')}: create another Encoder, or use the same "
                "family as before"
            )
        self.num_parameters = num_parameters
        features = features_of(self.net)
        if features is not None:
            head = nn.Linear(int(features), num_parameters, device="cpu")
            self.head = head.to(device=initial.device, dtype=initial.dtype)
            self.drawn = Drawn(self.head)

    @property
    def needs_unit_scale(self) -> bool:  # type: ignore[override]
        """Whether data should be of unit scale, because the network does not standardize them."""
        return not standardizes(self.net)

    @torch.no_grad()
    def start_from(self, *batch: Tensor) -> None:
        """Standardizes the inputs of new networks of `pv.nets`, and shrinks a new last layer.

        The last layer is shrunk if its outputs are large, for example because a user's network
        receives raw counts. With large outputs, the draws from q(z_n) could make a Poisson rate
        overflow. After shrinking, the root mean square of every output over the given rows is not
        far above 1. On data of about unit scale nothing changes. Trained or loaded layers are left
        unchanged.
        """
        if isinstance(self.head, nn.Linear) and self.drawn.changed:
            return
        start_inputs(self.net, lambda: self._output(batch))
        if isinstance(self.head, nn.Linear):
            largest = self._last_layer(self._output(batch)).square().mean(dim=0).sqrt().max()
            self.head.weight.div_(largest.nan_to_num(nan=1.0).clamp(min=1.0))
            self.drawn.reset_parameters()

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Parameters `(batch, parameters)`: the output of the network or of the added layer."""
        features = self._output(batch)
        if isinstance(self.head, nn.Linear) and features.shape[-1:] != (self.head.in_features,):
            raise ValueError(
                f"the encoder's net has num_features = {self.head.in_features}, but returns shape "
                f"{tuple(features.shape)}: let the net return shape (batch, num_features), or "
                f"remove the attribute num_features and return shape (batch, {self.num_parameters})"
            )
        parameters = self._last_layer(features)
        expected = (len(batch[0]), self.num_parameters)
        if parameters.shape != expected:
            raise ValueError(
                f"the encoder's net must return shape {expected}, the family's parameters for each "
                f"datum; got shape {tuple(parameters.shape)}: change the last layer to "
                f"{count_of(self.num_parameters, 'output')}, or give the net an attribute "
                "num_features, so that pyro_vae adds a last layer"
            )
        if not capturing() and has_missing(parameters) and any(map(has_missing, batch)):
            raise ValueError(
                "the encoder's net returns nan for data with missing entries (nan): use "
                "pv.nets.MissingIndicator(net) with a net that takes twice as many inputs, or "
                "impute the missing entries inside the net"
            )
        return parameters

    def _last_layer(self, features: Tensor) -> Tensor:
        """Applies the added layer, in this layer's dtype; the features may have another dtype."""
        if isinstance(self.head, nn.Linear) and not torch.is_autocast_enabled(features.device.type):
            features = features.to(self.head.weight.dtype)
        return self.head(features)

    def _output(self, batch: Batch) -> Tensor:
        """Calls the network; explains errors about shapes, dtypes and the number of tensors."""
        try:
            answer = self.net(*batch)
        except RuntimeError as error:
            if "mat1 and mat2" not in str(error):
                raise
            seen = ", ".join(f"{tuple(part.shape)} {part.dtype}" for part in batch)
            if "same dtype" in str(error):
                wanted = batch[0].dtype
                raise ValueError(
                    f"the encoder's net, {type(self.net).__name__}, must have the dtype of the "
                    f"data, {wanted}; got {next(self.net.parameters()).dtype}: convert the map, as "
                    f"in pv.Encoder(net).to({wanted}), or the guide, as in guide.to({wanted})"
                ) from error
            raise ValueError(
                f"the encoder's net, {type(self.net).__name__}, raised the error '{error}' for "
                f"data of shape and dtype {seen}: change the net's first layer, flatten each "
                "row, or convert the data"
            ) from error
        except TypeError as error:
            if _takes(self.net, batch):
                raise
            width = sum(part[0].numel() for part in batch)
            raise TypeError(
                f"the encoder's net, {type(self.net).__name__}, cannot take a batch of "
                f"{count_of(len(batch), 'tensor')}: concatenate the tensors with "
                f"pv.Encoder(pv.nets.Concatenated(net)), where `net` has {width} inputs"
            ) from error
        return require_tensor(answer, "encoder's net", self.net)


def _takes(net: nn.Module, batch: Batch) -> bool:
    """Whether a network can be called with as many tensors as the batch has."""
    try:
        inspect.signature(net.forward).bind(*batch)
    except TypeError:
        return False
    return True


@registered()
class GlobalParameters(InferenceMap):
    r"""Global map: :math:`\lambda_n = \lambda`, so q(z) is the same for every datum.

    This map is a baseline. If a model is trained with it, the optimum is a decoder that ignores z
    and returns the average of the data, because q(z) does not depend on the data. The best q(z) is
    then the prior, and the KL term is zero.
    """

    needs_unit_scale = False

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Creates one row of parameters, for all data."""
        self.value = nn.Parameter(initial.clone())

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Returns the parameters `(batch, parameters)`, which are equal for all data."""
        return self.value.expand(len(batch[0]), -1)


@registered()
class LocalParameters(InferenceMap):
    r"""Non-amortized map: :math:`\lambda_n` is row :math:`n` of a table of free parameters.

    The table is not a `Parameter`, because an optimizer would also move rows outside the batch (by
    Adam's momentum), at a cost that grows with the data. Instead, `backward()` updates the rows of
    the batch by a separate Adam with moments and a step count per row. So rows outside the batch
    never change, and a step costs the same for a thousand data as for a million. In `pv.fit` the
    step size of the rows follows the learning rate schedule.

    :class:`pyro_vae.minibatch` says which rows form the batch. Outside a minibatch, the batch must
    be the whole data set that the table was trained on. To check this, the map compares digests
    (hashes) of the rows.

    Arguments:
        num_data: Number of rows of the training data set.
        lr: Step size of the rows' Adam. A row takes one step per epoch, far fewer than the networks
            take, so rows need a larger step size.
        decay: A row's step size after k steps is divided by sqrt(1 + k / decay), so that rows move
            fast at first and settle later.
        device: Device of the table and its optimizer state; by default the guide's. With
            `device="cpu"` the table stays in main memory when the guide moves to an accelerator.
            Then only the rows of a batch are copied to the accelerator, and only their gradients
            are copied back.

    Shapes:
        rows: `(batch,)`, int64 positions in the training data set.
        returns: `(batch, parameters)`, unconstrained.

    Raises:
        ValueError: When called, if the positions of the batch's rows are unknown, or if the data
            are not those that the table was trained on.

    References:
        | Stochastic Variational Inference (Hoffman et al., 2013)
        | https://arxiv.org/abs/1206.7051
        | Adam: A Method for Stochastic Optimization (Kingma & Ba, 2015)
        | https://arxiv.org/abs/1412.6980
    """

    per_row = True
    needs_unit_scale = False
    table: Tensor
    moment: Tensor
    square: Tensor
    visits: Tensor
    digests: Tensor

    def __init__(
        self,
        num_data: int,
        *,
        lr: float = 0.1,
        decay: float = 50.0,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__()
        self.num_data, self.lr, self.decay, self.factor = num_data, lr, decay, 1.0
        self.device = None if device is None else torch.device(device)
        # Pyro's SVI calls backward() only if there is a parameter; an empty parameter is enough.
        self.anchor = nn.Parameter(torch.zeros(0))
        self._leaf: tuple[Tensor, int, Tensor] | None = None
        self._start: tuple[Tensor, Tensor] | Tensor | None = None

    def start_at(
        self,
        loc: Float[Tensor, "data latents"],
        precision: Float[Tensor, "data latents latents"],
    ) -> None:
        """Stores a Gaussian for each datum; the datum's q will start near this Gaussian."""
        self._start = (loc, precision)

    def attach(self, program: Program, family: Family) -> None:
        """Converts the Gaussians of :meth:`start_at` to parameters, by `closest_normal`.

        If the family lacks this method, the Gaussians are not used.
        """
        if isinstance(self._start, tuple):
            closest = family.closest_normal if isinstance(family, ClosestNormal) else None
            self._start = None if closest is None else closest(*self._start)

    def setup(self, num_parameters: int, initial: Float[Tensor, " parameters"]) -> None:
        """Creates the table and an optimizer state per row.

        Every row starts at `initial`, or at the Gaussian that :meth:`start_at` set.
        """
        start, self._start = self._start, None
        table = initial.to(self.device).repeat(self.num_data, 1)
        if isinstance(start, Tensor):
            table.copy_(start)
        self.anchor = nn.Parameter(initial.new_zeros(0))  # on the model's device
        self.register_buffer("table", table)
        self.register_buffer("moment", torch.zeros_like(table))
        self.register_buffer("square", torch.zeros_like(table))
        counts = torch.zeros(self.num_data, dtype=torch.int64, device=table.device)
        self.register_buffer("visits", counts)
        self.register_buffer("digests", counts[:0].clone())

    def _apply(
        self,
        fn: Callable[[Tensor], Tensor],
        recurse: bool = True,  # noqa: FBT001, FBT002  (torch's signature)
    ) -> "LocalParameters":
        """Moves or casts the map; called by torch. A table with a fixed `device` is only cast."""
        if self.device is None:
            return super()._apply(fn, recurse)

        def cast(tensor: Tensor) -> Tensor:
            if tensor is self.anchor:
                return fn(tensor)  # empty, and on the guide's device
            return tensor.to(fn(tensor[:0]).dtype)  # `fn` sees an empty slice: nothing is moved

        return super()._apply(cast, recurse)

    def remember(self, *batch: Tensor) -> None:
        """Records which data the table belongs to, so that other data are refused."""
        if len(batch[0]) != self.num_data:
            raise ValueError(
                f"LocalParameters has {count_of(self.num_data, 'row')}, but the training data have "
                f"{count_of(len(batch[0]), 'row')}: pass `num_data={len(batch[0])}` to "
                "LocalParameters"
            )
        self.digests = row_digests(*batch).to(self.table.device)

    def scale_steps(self, factor: float) -> None:
        """Sets the factor by which the learning rate schedule scales the rows' step size."""
        self.factor = factor

    def fill(self, parameters: Float[Tensor, "data parameters"]) -> None:
        """Sets the whole table to given parameters, `(num_data, parameters)`."""
        self.table.copy_(parameters)

    def blank(self, num_data: int) -> "LocalParameters":
        """Returns a new map for `num_data` rows, with the settings of this map."""
        return LocalParameters(num_data, lr=self.lr, decay=self.decay, device=self.device)

    def take(self, *tables: "LocalParameters") -> None:
        """Joins rows and optimizer states of the given tables, in this order, into this table."""
        for name in ("table", "moment", "square", "visits", "digests"):
            parts = [getattr(table, name).to(self.table.device) for table in tables]
            setattr(self, name, torch.cat(parts))
        if len(self.digests) < self.num_data:  # some tables have no digests
            self.digests = self.digests[:0]

    def owns(self, leaf: Tensor) -> bool:
        """Whether a leaf of the loss's graph holds rows of this table that are being trained."""
        return self._leaf is not None and leaf is self._leaf[2]

    def forward(self, batch: Batch, rows: Int[Tensor, " batch"] | None) -> Tensor:
        """Rows of the table for a batch; in training mode `backward()` updates these rows."""
        rows = self._positions(batch, rows).to(self.table.device)
        if not (self.training and torch.is_grad_enabled()):
            return self.table[rows].to(batch[0].device)
        unique, inverse = rows.unique(return_inverse=True)
        return self._trainable(unique)[inverse].to(batch[0].device)

    def _positions(self, batch: Batch, rows: Tensor | None) -> Tensor:
        """Returns the positions of the batch's rows in the table; refuses unknown positions."""
        num_rows = len(batch[0])
        if rows is None:
            self._check_whole(batch)
            return torch.arange(self.num_data, device="cpu")
        if len(rows) != num_rows:
            raise ValueError(
                f"the guide must be called with the {count_of(len(rows), 'row')} of the minibatch; "
                f"got {count_of(num_rows, 'row')}: pass data[rows]"
            )
        if int(rows.max()) >= self.num_data:
            raise ValueError(
                f"LocalParameters has {count_of(self.num_data, 'row')}, but the minibatch contains "
                f"row {int(rows.max())}, counted from 0: pass `num_data={int(rows.max()) + 1}` or "
                "more to LocalParameters"
            )
        return rows

    def _check_whole(self, batch: Batch) -> None:
        """Refuses a batch without known positions unless it is the whole training data set."""
        remedy = (
            "use guide.fit_rows(y) for new data, or call the guide in `with pv.minibatch(rows, "
            "num_data):` for some of the training rows"
        )
        if len(batch[0]) != self.num_data:
            raise ValueError(
                "LocalParameters must be called with all of its "
                f"{count_of(self.num_data, 'training row')}; got {count_of(len(batch[0]), 'row')}: "
                f"{remedy}"
            )
        if self.training or self.digests.numel() == 0:
            return
        other = (row_digests(*batch).to(self.digests.device) != self.digests).nonzero()
        if len(other) > 0:
            raise ValueError(
                f"the data must be those that LocalParameters was trained on; got other "
                f"data in {len(other)} of {count_of(self.num_data, 'row')}, the first in row "
                f"{int(other[0])}: {remedy}"
            )

    def _trainable(self, rows: Tensor) -> Tensor:
        """Returns these rows of the table as a leaf; `backward()` then updates the rows.

        Until the update, further calls with the same rows, one for each particle, return the same
        leaf. The rows take one step per call of `backward()`. Pyro's `svi.step` calls `backward()`
        for each particle separately, unless particles are vectorized.
        """
        version = self.table._version
        if self._leaf is not None and self._leaf[1] == version and torch.equal(self._leaf[0], rows):
            return self._leaf[2]
        leaf = self.table[rows].requires_grad_()
        self._leaf = (rows, version, leaf)
        leaf.register_post_accumulate_grad_hook(lambda tensor: self._step(rows, tensor))
        return leaf

    def _step(self, rows: Tensor, leaf: Tensor) -> None:
        """Updates rows of the table with the gradient of their leaf; called during `backward()`."""
        gradient, leaf.grad = leaf.grad, None
        self._leaf = None
        if gradient is not None:
            self.update(rows, gradient)

    @torch.no_grad()
    def update(
        self, rows: Int[Tensor, " batch"], gradient: Float[Tensor, "batch parameters"]
    ) -> None:
        """Takes one Adam step for the given rows of the table; no other row is read or written.

        Raises:
            FloatingPointError: If the gradient of a row is not finite. The message names the first
                such row; the table stays unchanged.
        """
        bad = (~gradient.isfinite().all(dim=-1)).nonzero()
        if len(bad) > 0:
            raise FloatingPointError(
                f"the gradient of row {int(rows[bad[0]])} of LocalParameters is not finite "
                f"(affected: {len(bad)} of {count_of(len(rows), 'row')} in the batch): check the "
                "program's log density of this row's data"
            )
        beta1, beta2, epsilon = 0.9, 0.99, 1e-8  # as in pyro_vae.training.adam
        self.visits[rows] += 1
        visits = self.visits[rows].to(gradient.dtype).unsqueeze(-1)
        moment = self.moment[rows].lerp(gradient, 1 - beta1)
        square = self.square[rows].lerp(gradient.square(), 1 - beta2)
        self.moment[rows], self.square[rows] = moment, square
        direction = (moment / (1 - beta1**visits)) / (
            (square / (1 - beta2**visits)).sqrt() + epsilon
        )
        lr = self.lr * self.factor / (1 + visits / self.decay).sqrt()
        self.table[rows] -= lr * direction

    def __getstate__(self) -> dict[str, object]:
        """The map's state for copying or pickling, without rows that await `backward()`."""
        return {**self.__dict__, "_leaf": None}

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: object
    ) -> None:
        # The digests are empty until the data are known, so their shape is taken from the file.
        saved = state_dict.get(prefix + "digests")
        if saved is not None:
            self.digests = torch.zeros_like(saved)
        super()._load_from_state_dict(state_dict, prefix, *args)
