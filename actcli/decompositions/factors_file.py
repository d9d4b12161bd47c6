"""Factors in one `.safetensors` file: "actcli factors v1", or any with keys that end in .V and .U.

    <module>.V (inputs, C), <module>.U (C, outputs)       x @ weight.T ~ x @ V @ U
    <module>.{sign,mean_ci,firing_density,ids} (C,)       optional
    __metadata__: format=actcli.factors, version=1, layout=x@V@U, acts=linear,
        modules  JSON list of the module names
        source   JSON {kind, name}: the decomposition that was written
        target   JSON {name_or_path, model_type, sha256: {module: ...}}

Where one module holds Q, K and V together, each side has factors of its own, of its own outputs in
the order (head, width): `<module>:q.V` and `<module>:k.V`. A `sha256` is of the module's weight as
float32 (outputs, inputs), rows one after another.

Tensor legend: C components, O outputs of a side.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actcli.decompositions.factors import (
    STRAIGHT,
    TRANSPOSED,
    Decomposition,
    Factors,
    Layout,
    Side,
    StoredFactors,
    attention_layers,
    check_modules,
    checked,
    outputs_first,
)
from actcli.errors import ModelError, UsageError, reason
from actcli.models.adapter import ModelAdapter

if TYPE_CHECKING:
    from actcli.models.qk import QkLayer, QkSide

FORMAT = "actcli.factors"
VERSION = "1"
_NOTES = ("sign", "mean_ci", "firing_density")
_SIDES: tuple[Side, ...] = ("q", "k")


class FactorsFile:
    """A file of factors; the tensors of a layer are read when they are asked for."""

    def __init__(self, path: Path, adapter: ModelAdapter, *, layout: Layout | None = None) -> None:
        """Read the header.

        Args:
            path: the file.
            adapter: the model that it should be of.
            layout: which way round the factors are, where the file does not say.

        Raises:
            ModelError: it is damaged, has no factors, or is of a model with other modules.
            UsageError: it is of a kind that cannot be read here.
        """
        self._path, self._net = path, adapter.net
        with _opened(path) as file:
            self._keys = frozenset(file.keys())
            self._metadata: dict[str, str] = file.metadata() or {}
        self._layout = _layout(path, self._metadata) or layout
        self._names = _names(path, self._keys)
        check_modules(str(path), sorted({_module(each) for each in self._names}), self._net)
        self._layers = attention_layers(adapter, map(_module, self._names))
        self._hashes = _target(self._metadata).get("sha256", {})

    @property
    def name(self) -> str:
        """`file:` and the file's name."""
        return f"file:{self._path.name}"

    def layers(self) -> tuple[int, ...]:
        """The layers whose attention has factors in the file."""
        return self._layers

    def factors(self, layer: "QkLayer", side: Side) -> Factors | None:
        """The factors of one side, or None.

        Raises:
            ModelError: they do not fit, are not finite, or were made of other weights.
            UsageError: square factors without a layout.
        """
        half = layer.q if side == "q" else layer.k
        own = f"{half.module}:{side}"
        name = own if own in self._names else half.module
        if name not in self._names:
            return None
        self._check_weight(half.module)
        n_outputs = len(half.outputs_O) if name == own else self._weight(half.module).shape[0]
        return checked(
            self._read(name),
            n_inputs=half.weight_OH.shape[1],
            n_outputs=n_outputs,
            columns_O=None if name == own else half.outputs_O,
        )

    def ci_modules(self, layer: "QkLayer", side: Side) -> tuple[str, ...]:
        """None: the file holds no functions."""
        del layer, side
        return ()

    def causal_importance(
        self, inputs_by_module: Mapping[str, Tensor], layer: "QkLayer", side: Side
    ) -> None:
        """None."""
        del inputs_by_module, layer, side

    def _read(self, name: str) -> StoredFactors:
        with _opened(self._path) as file:
            notes = {
                note: file.get_tensor(f"{name}.{note}")
                for note in (*_NOTES, "ids")
                if f"{name}.{note}" in self._keys
            }
            V, U = file.get_tensor(f"{name}.V"), file.get_tensor(f"{name}.U")
        return StoredFactors(f"{name} in {self._path}", V, U, self._layout, notes)

    def _weight(self, module: str) -> Tensor:
        return _weight(self._net, module)

    def _check_weight(self, module: str) -> None:
        expected = self._hashes.get(module)
        if expected is not None and expected != _sha256(self._weight(module)):
            raise ModelError(
                f"{self._path} holds factors of another model: they were made of other weights of "
                f"{module} than this model has; give the model that was decomposed (it says: "
                f"{_target(self._metadata).get('name_or_path', 'unknown')}), in the same dtype"
            )


def write_factors(
    path: Path, decomposition: Decomposition, *, layers: Sequence["QkLayer"], adapter: ModelAdapter
) -> None:
    """Write the factors of some layers as "actcli factors v1".

    Args:
        path: the file to write.
        decomposition: what to write.
        layers: which layers of it.
        adapter: the model.

    Raises:
        ModelError: the factors are damaged, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    hashes = {}
    for layer in layers:
        for side in _SIDES:
            factors = decomposition.factors(layer, side)
            if factors is not None:
                half = layer.q if side == "q" else layer.k
                weight = _weight(adapter.net, half.module)
                hashes[half.module] = _sha256(weight)
                tensors |= _as_stored(factors, half, side, n_outputs=weight.shape[0])
    if not tensors:
        raise ModelError(f"{decomposition.name} has no factors of these layers: nothing to write")
    try:
        save_file(tensors, path, metadata=_described(decomposition, adapter, tensors, hashes))
    except (OSError, SafetensorError) as error:
        raise ModelError(f"cannot write {path}: {reason(error)}") from error


def target_named_in(path: Path) -> str | None:
    """The model that a file of factors says it is of, as `--init` names it.

    Raises:
        ModelError: the file is damaged or not there.
    """
    with _opened(path) as file:
        named = _target(file.metadata() or {}).get("name_or_path")
    return named if isinstance(named, str) else None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} is no readable .safetensors file of factors: {reason(error)}"
        ) from error


def _layout(path: Path, metadata: Mapping[str, str]) -> Layout | None:
    """Which way round the factors are, and that we know this version of the format."""
    if metadata.get("acts", "linear") != "linear":
        raise UsageError(
            f"{path} has activations of its own (acts={metadata['acts']}); only components that "
            f"read along V can be used (acts=linear)"
        )
    if metadata.get("format") != FORMAT:
        return None
    layout = metadata.get("layout", STRAIGHT)
    if metadata.get("version") != VERSION or layout not in (STRAIGHT, TRANSPOSED):
        raise ModelError(
            f"{path} is of {FORMAT} version {metadata.get('version')}, layout {layout}; this "
            f"actcli reads version {VERSION}, layout {STRAIGHT} or {TRANSPOSED}"
        )
    return STRAIGHT if layout == STRAIGHT else TRANSPOSED


def _names(path: Path, keys: frozenset[str]) -> frozenset[str]:
    """The names before .V and .U, of which both must be there."""
    reads = {key.removesuffix(".V") for key in keys if key.endswith(".V")}
    writes = {key.removesuffix(".U") for key in keys if key.endswith(".U")}
    if not reads | writes:
        raise ModelError(
            f"{path} holds no factors: none of its {len(keys)} keys ends in .V or .U "
            f"(<module>.V and <module>.U)"
        )
    lone = sorted(reads ^ writes)
    if lone:
        has, lacks = ("V", "U") if lone[0] in reads else ("U", "V")
        raise ModelError(f"{path} has {lone[0]}.{has} without {lone[0]}.{lacks}; it needs both")
    return frozenset(reads)


def _module(name: str) -> str:
    return name.removesuffix(":q").removesuffix(":k")


def _target(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        target = json.loads(metadata.get("target", "{}"))
    except ValueError:
        return {}
    return target if isinstance(target, dict) else {}


def _weight(net: nn.Module, module: str) -> Tensor:
    """Weight (outputs, inputs) of a module of the model."""
    found = net.get_submodule(module)
    weight = found.weight
    assert isinstance(weight, Tensor), module
    return outputs_first(found, weight.detach())


def _sha256(weight: Tensor) -> str:
    values = weight.to("cpu", torch.float32).contiguous()
    return hashlib.sha256(values.numpy().data).hexdigest()


def _as_stored(
    factors: Factors, half: "QkSide", side: Side, *, n_outputs: int
) -> dict[str, Tensor]:
    """The tensors of one side by key; factors of a whole module in the order of its outputs."""
    name, U = half.module, factors.U_CO
    if len(half.outputs_O) == n_outputs:
        U = torch.empty_like(factors.U_CO)
        U[:, half.outputs_O] = factors.U_CO
    else:
        name = f"{half.module}:{side}"
    notes = {note: getattr(factors, f"{note}_C") for note in _NOTES}
    return {
        f"{name}.V": factors.V_HC.contiguous(),
        f"{name}.U": U.contiguous(),
        f"{name}.ids": torch.tensor(factors.ids_C),
        **{f"{name}.{note}": values for note, values in notes.items() if values is not None},
    }


def _described(
    decomposition: Decomposition,
    adapter: ModelAdapter,
    tensors: Mapping[str, Tensor],
    hashes: Mapping[str, str],
) -> dict[str, str]:
    config = getattr(adapter.net, "config", None)
    kind = decomposition.name.partition(":")[0]
    return {
        "format": FORMAT,
        "version": VERSION,
        "layout": STRAIGHT,
        "acts": "linear",
        "modules": json.dumps(sorted(key[:-2] for key in tensors if key.endswith(".V"))),
        "source": json.dumps({"kind": kind, "name": decomposition.name}),
        "target": json.dumps(
            {
                "name_or_path": adapter.files.source.init,
                "model_type": getattr(config, "model_type", adapter.family),
                "sha256": dict(sorted(hashes.items())),
            }
        ),
    }
