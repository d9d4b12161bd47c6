"""The weights that make a layer's queries or keys, and their norm as a factor.

Tensor legend: T tokens, H hidden, A heads (of this side), D head width, O = A*D outputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from actcli.errors import ModelError
from actcli.models.norms import Norm, as_norm
from actcli.models.qk_capture import Side, Taken

_ROUNDINGS = 8.0  # of the dtype, of a product as large as |x| |w| allows


@dataclass(frozen=True)
class QkSide:
    """The queries, or the keys, of one layer: projection = x @ weight.T + bias."""

    module: str
    """Path of the module that holds the weights, such as `model.layers.1.self_attn.q_proj`; a fused
    projection is named by both sides."""

    outputs_O: Tensor
    """int64: which outputs of the module are this side's, in the order (head, D)."""

    weight_OH: Tensor
    """float32, on the CPU; turned and cut already where the module stores it otherwise."""

    bias_O: Tensor | None
    n_heads: int
    """Query heads, or key/value heads."""

    norm: Norm | None = None
    """The RMSNorm between the projection and the rotary embedding."""

    @property
    def head_width(self) -> int:
        """D."""
        return len(self.outputs_O) // self.n_heads


def find_side(net: nn.Module, taken: Taken, side: Side) -> QkSide:
    """Find the weights behind a side's queries or keys, by the values that flowed.

    Raises:
        ModelError: no linear map and no norm without mean explains them; says why.
    """
    point = taken.points[side]
    module, n_heads = net.get_submodule(point.module), taken.vectors(side).shape[1]
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.ndim == 2 and point.module in taken.gave:
        width = taken.rows(taken.gave[point.module]).shape[-1]
        if width in weight.shape:
            outputs_O = point.view(torch.arange(width)[None, None]).flatten()
            return _side(net, taken, point.module, outputs_O, n_heads, None)
    norm = _linear_norm(module, taken, side)
    path, outputs_O = _projection_of(taken, side)
    return _side(net, taken, path, outputs_O, n_heads, norm)


def factor_of(side: QkSide, taken: Taken, name: Side) -> Tensor | None:
    """What the norm multiplies each number of a projection by, (T, A, D) float32; None: no norm.

    gain / rms of the token (and head), from the projection itself and not from the quotient of
    what the norm gave and read, which is nothing at a zero.
    """
    if side.norm is None:
        return None
    point = taken.points[name]
    given = taken.read[point.module].float()
    per_group = torch.rsqrt(given.square().mean(dim=-1, keepdim=True) + side.norm.eps)
    gain = side.norm.gain
    factor = per_group.expand_as(given) * (1.0 if gain is None else gain.float())
    return point.view(factor)[0]


def check_linear(side: QkSide, factor_TAD: Tensor | None, taken: Taken, name: Side) -> Tensor:
    """What the side's projection reads, (T, H) float32, after a check that all is as said.

    Raises:
        ModelError: the weights and the norm do not give the model's own queries or keys.
    """
    x_TH = taken.rows(taken.read[side.module]).float().cpu()
    vectors_TAD = taken.vectors(name)
    rebuilt_TO = x_TH @ side.weight_OH.T
    sizes_TO = x_TH.norm(dim=-1)[:, None] * side.weight_OH.norm(dim=-1)
    if side.bias_O is not None:
        rebuilt_TO, sizes_TO = rebuilt_TO + side.bias_O, sizes_TO + side.bias_O.abs()
    factor_TO = 1.0 if factor_TAD is None else factor_TAD.flatten(1).cpu()
    error_TO = (factor_TO * rebuilt_TO - vectors_TAD.flatten(1).float().cpu()).abs()
    limit_TO = _ROUNDINGS * torch.finfo(vectors_TAD.dtype).eps * sizes_TO * abs(factor_TO)
    if bool((error_TO > limit_TO + torch.finfo(torch.float32).tiny).any()):
        raise ModelError(
            f"the {'queries' if name == 'q' else 'keys'} of {side.module} are not linear in what "
            f"it reads: weights and norm give values up to {float(error_TO.max()):.3g} away from "
            f"the model's own (a clip on them, an adapter or quantised weights would do that)"
        )
    return x_TH


def _side(
    net: nn.Module, taken: Taken, path: str, outputs_O: Tensor, n_heads: int, norm: Norm | None
) -> QkSide:
    module = net.get_submodule(path)
    outputs_O = outputs_O.cpu()
    weight_OH = _turned_weight(module, taken, path)[outputs_O.to(_weight(module, path).device)]
    bias = getattr(module, "bias", None)
    bias_O = bias.detach().float().cpu()[outputs_O] if isinstance(bias, Tensor) else None
    return QkSide(path, outputs_O, weight_OH.float().cpu(), bias_O, n_heads, norm)


def _turned_weight(module: nn.Module, taken: Taken, path: str) -> Tensor:
    """The weight as (outputs, H), which some modules store as (H, outputs)."""
    weight = _weight(module, path).detach()
    x_TH, y_TO = (taken.rows(each[path]).float() for each in (taken.read, taken.gave))
    bias = getattr(module, "bias", None)
    errors = []
    for each in (weight, weight.T):
        if each.shape == (y_TO.shape[-1], x_TH.shape[-1]):
            rest_TO = y_TO - (0.0 if bias is None else bias.detach().float())
            errors.append((float((x_TH @ each.float().T - rest_TO).abs().max()), each))
    if not errors:
        raise ModelError(f"{path} is no linear map: its weight is {list(weight.shape)}")
    return min(errors, key=lambda found: found[0])[1]


def _weight(module: nn.Module, path: str) -> Tensor:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        raise ModelError(f"{path} ({type(module).__name__}) shows no weights in floating point")
    return weight


def _linear_norm(module: nn.Module, taken: Taken, side: Side) -> Norm:
    path = taken.points[side].module
    norm = as_norm(module, taken.read[path].shape[-1])
    if norm is not None and norm.kind == "rms" and norm.bias is None:
        return norm
    what = "is no norm that actcli knows" if norm is None else "subtracts the mean, or adds a bias"
    raise ModelError(
        f"{path} ({type(module).__name__}), between projection and rotary embedding, {what}: only "
        f"an RMSNorm scales each number by itself, which the parts of a logit need"
    )


def _projection_of(taken: Taken, side: Side) -> tuple[str, Tensor]:
    """The matrix whose outputs the norm of this side reads, and which of them, in its order."""
    point = taken.points[side]
    wanted_TO = point.view(taken.read[point.module])[0].flatten(1)
    for path, given in taken.gave.items():
        if path != point.module and given.numel() >= wanted_TO.numel():
            outputs_O = _columns_of(taken.rows(given), wanted_TO)
            if outputs_O is not None:
                return path, outputs_O
    raise ModelError(f"{point.module} reads no outputs of a linear map of its attention module")


def _columns_of(all_TO: Tensor, wanted_TO: Tensor) -> Tensor | None:
    """Which columns hold the same numbers at every token; of equal ones, each is used once."""
    if all_TO.shape == wanted_TO.shape and torch.equal(all_TO, wanted_TO):
        return torch.arange(all_TO.shape[1])
    places: dict[bytes, list[int]] = {}
    for number, column in reversed(list(enumerate(_columns(all_TO)))):
        places.setdefault(column, []).append(number)
    found = [places[each].pop() if places.get(each) else None for each in _columns(wanted_TO)]
    numbers = [each for each in found if each is not None]
    return torch.tensor(numbers) if len(numbers) == len(found) else None


def _columns(values_TO: Tensor) -> Iterator[bytes]:
    for column_T in values_TO.float().cpu().T.contiguous().numpy():
        yield column_T.tobytes()
