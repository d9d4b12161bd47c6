"""What a parameter decomposition is: factors of the weights of Q and K, checked against a model.

A component c of one side reads its input along v_c and writes along u_c, so that the projection is
`x @ weight.T = x @ V @ U + x @ delta.T`, with the bias beside it (Bushnaq, Braun, Sharkey,
"Stochastic Parameter Decomposition", 2025: every component is a matrix of rank one, for all heads
together).

Tensor legend: T tokens, H hidden, C components, O outputs of a side in the order (head, width).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from actcli.errors import ModelError, UsageError, nearest
from actcli.models.adapter import ModelAdapter

if TYPE_CHECKING:
    from actcli.models.qk import QkLayer, QkSide

Side = Literal["q", "k"]
Layout = Literal["x@V@U", "U@V@x"]
STRAIGHT: Layout = "x@V@U"
TRANSPOSED: Layout = "U@V@x"

_MOST_NAMES = 5
_LARGEST_WEIGHT_GAP = 0.02
"""Of the largest weight: rounding to bfloat16 makes 0.004, another model about 1."""


@dataclass(frozen=True)
class Factors:
    """One side of one layer: float32, and what is known of each component."""

    V_HC: Tensor
    """Component c reads the input along V[:, c]."""

    U_CO: Tensor
    """Component c writes along U[c], in the order of the outputs of a `QkSide`."""

    ids_C: tuple[int, ...]
    """The number of each component where it comes from."""

    mean_ci_C: Tensor | None = None
    """Mean causal importance over a data set; 0 for components that never fired."""

    sign_C: Tensor | None = None
    """+1 or -1: the sign that a component's activation has where it fires."""

    firing_density_C: Tensor | None = None
    """Part of the tokens on which a component fires."""


class Decomposition(Protocol):
    """Components of the Q and K of some layers of one model."""

    @property
    def name(self) -> str:
        """What the user calls it, such as `svd:8`."""
        ...

    def layers(self) -> tuple[int, ...]:
        """The layers of which Q, K or both are decomposed, rising."""
        ...

    def factors(self, layer: "QkLayer", side: Side) -> Factors | None:
        """The factors of one side; None where that side is not decomposed.

        Raises:
            ModelError: they are damaged, or of another model.
        """
        ...

    def ci_modules(self, layer: "QkLayer", side: Side) -> tuple[str, ...]:
        """The modules of the model whose inputs `causal_importance` reads; none where it has none.

        Raises:
            ModelError: the decomposition has causal importances of a kind that is not known.
        """
        ...

    def causal_importance(
        self, inputs_by_module: Mapping[str, Tensor], layer: "QkLayer", side: Side
    ) -> Tensor | None:
        """Causal importance (T, C) from 0 to 1 of one text; None where there is none.

        Args:
            inputs_by_module: what each of `ci_modules` reads, (T, H), for the whole text: some
                causal importances look at the tokens that follow.
            layer: the layer.
            side: the side.
        """
        ...


@dataclass(frozen=True)
class StoredFactors:
    """A module's factors as a file holds them."""

    where: str
    """For messages: the module and the file."""

    V: Tensor
    U: Tensor
    layout: Layout | None
    """None where the file does not say: then the shapes tell."""

    notes: Mapping[str, Tensor]
    """`ids`, `mean_ci`, `sign`, `firing_density`, each (C,), where they are there."""


def checked(
    stored: StoredFactors, *, n_inputs: int, n_outputs: int, columns_O: Tensor | None = None
) -> Factors:
    """Turn factors the right way round and take one side's outputs of them.

    Args:
        stored: as read.
        n_inputs: inputs H of the module.
        n_outputs: outputs of the whole module that the factors are of.
        columns_O: which of those outputs are the side's, in its order; None for all as they are.

    Raises:
        ModelError: shapes that do not fit, or numbers that are not finite.
        UsageError: square factors of which nobody says which way round they are.
    """
    V, U = _oriented(stored, n_inputs, n_outputs)
    V_HC, U_CM = V.to(torch.float32), U.to(torch.float32)
    _check_finite(stored.where, V_HC.T, U_CM)
    U_CO = U_CM if columns_O is None else U_CM[:, columns_O]
    return Factors(V_HC.contiguous(), U_CO.contiguous(), **_noted(stored, V_HC.shape[1]))


def sides_of(
    decomposition: Decomposition, layer: "QkLayer"
) -> tuple[Factors | None, Factors | None]:
    """The factors of Q and of K of a layer, of which one may be None: not decomposed.

    Raises:
        ModelError: they are damaged, or of another model.
        UsageError: neither is decomposed; names the layers that are.
    """
    q, k = decomposition.factors(layer, "q"), decomposition.factors(layer, "k")
    if q is None and k is None:
        known = ", ".join(map(str, decomposition.layers())) or "none at all"
        raise UsageError(
            f"{decomposition.name} decomposes neither Q nor K of layer {layer.layer}; its layers "
            f"are {known}"
        )
    return q, k


def check_modules(where: str, modules: Sequence[str], net: nn.Module) -> None:
    """Refuse factors of modules that the model does not have.

    Raises:
        ModelError: names the first that is not there, and the nearest that is.
    """
    known = {name for name, _module in net.named_modules() if name}
    missing = [each for each in modules if each not in known]
    if missing:
        raise ModelError(
            f"{where} has factors of {', '.join(missing[:_MOST_NAMES])}"
            f"{', ...' if missing[_MOST_NAMES:] else ''}, and {type(net).__name__} has no such "
            f"module; {nearest(missing[0], known)}"
        )


def check_same_weight(where: str, stored_OH: Tensor, side: "QkSide") -> None:
    """Refuse factors that were made of other weights than the model has.

    Raises:
        ModelError: shapes differ, or the weights by more than rounding.
    """
    shape, expected = list(stored_OH.shape), list(side.weight_OH.shape)
    if shape == expected:
        weight_OH = stored_OH.to(side.weight_OH)
        gap = float((weight_OH - side.weight_OH).abs().max())
        if gap <= _LARGEST_WEIGHT_GAP * float(side.weight_OH.abs().max()):
            return
        found = f"differ by up to {gap:.3g}"
    else:
        found = f"are {shape} and {expected}"
    raise ModelError(
        f"{where} is a decomposition of another model: its weights of {side.module} and those of "
        f"this model {found}; give the model that was decomposed"
    )


def outputs_first(module: nn.Module, weight: Tensor) -> Tensor:
    """A module's weight as (outputs, inputs): GPT-2's Conv1D keeps it the other way round."""
    return weight.T if type(module).__name__ == "Conv1D" else weight


def attention_layers(adapter: ModelAdapter, modules: Iterable[str]) -> tuple[int, ...]:
    """The layers in whose attention some of these modules are, rising."""
    parents = {module.rpartition(".")[0] for module in modules}
    points = {layer: adapter.layer_points("q", layer) for layer in range(adapter.n_layers)}
    return tuple(
        layer
        for layer, point in points.items()
        if point is not None and point.module.rpartition(".")[0] in parents
    )


def _oriented(stored: StoredFactors, n_inputs: int, n_outputs: int) -> tuple[Tensor, Tensor]:
    """V (H, C) and U (C, outputs), whichever way round they lie."""
    V, U = stored.V, stored.U
    fits: dict[Layout, bool] = {
        STRAIGHT: _fits(V, U, n_inputs, n_outputs),
        TRANSPOSED: V.ndim == U.ndim == 2 and _fits(V.T, U.T, n_inputs, n_outputs),
    }
    layout = stored.layout
    if layout is None and all(fits.values()):
        raise UsageError(
            f"the factors of {stored.where} are square, V {list(V.shape)} and U {list(U.shape)}: "
            f"say which way round they are, --layout {STRAIGHT} or --layout {TRANSPOSED}"
        )
    if not (any(fits.values()) if layout is None else fits[layout]):
        said = "" if layout is None else f" ({layout})"
        raise ModelError(
            f"the factors of {stored.where} do not fit the model: V is {list(V.shape)}, U is "
            f"{list(U.shape)}{said}, expected V [{n_inputs}, C] and U [C, {n_outputs}]"
        )
    straight = fits[STRAIGHT] if layout is None else layout == STRAIGHT
    return (V, U) if straight else (V.T, U.T)


def _fits(V: Tensor, U: Tensor, n_inputs: int, n_outputs: int) -> bool:
    if V.ndim != 2 or U.ndim != 2:
        return False
    return V.shape[0] == n_inputs and U.shape == (V.shape[1], n_outputs) and V.shape[1] > 0


def _check_finite(where: str, V_CH: Tensor, U_CM: Tensor) -> None:
    for name, rows in (("V", V_CH), ("U", U_CM)):
        bad = torch.nonzero(~torch.isfinite(rows).all(dim=1)).flatten().tolist()
        if bad:
            named = ", ".join(map(str, bad[:_MOST_NAMES])) + (", ..." if bad[_MOST_NAMES:] else "")
            raise ModelError(
                f"{name} of {where} holds NaN or infinity in {len(bad)} of {len(rows)} components "
                f"({named}): the file is damaged, or training diverged"
            )


def _noted(stored: StoredFactors, n_components: int) -> dict[str, Any]:
    notes = {}
    for name, values in stored.notes.items():
        if values.shape != (n_components,):
            raise ModelError(
                f"{name} of {stored.where} is {list(values.shape)}, expected [{n_components}]: one "
                f"number per component"
            )
        notes[name] = values
    ids = notes.pop("ids", None)
    return {
        "ids_C": tuple(range(n_components)) if ids is None else tuple(map(int, ids.tolist())),
        **{f"{name}_C": values.to(torch.float32) for name, values in notes.items()},
    }
