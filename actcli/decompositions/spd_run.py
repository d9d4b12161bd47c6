"""An SPD run: a folder with `model_<step>.pth` and `final_config.yaml`, of components.

The run's own model is loaded by `spd_model`; `SpdRun` holds the components against a model that is
loaded, whatever it was loaded from, and refuses one with other weights.

Tensor legend: T tokens, H hidden, C components, O outputs of a side.
"""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from actcli.decompositions.causal_importance import CausalImportances
from actcli.decompositions.factors import (
    STRAIGHT,
    Factors,
    Side,
    StoredFactors,
    attention_layers,
    check_modules,
    check_same_weight,
    checked,
    outputs_first,
)
from actcli.decompositions.harvest import find_harvest, read_notes
from actcli.decompositions.spd_checkpoint import find_checkpoint, read_checkpoint
from actcli.decompositions.spd_config import read_config
from actcli.decompositions.spd_model import find_simple, folder_of
from actcli.decompositions.spd_target import SimpleTarget
from actcli.models.adapter import ModelAdapter
from actcli.models.qk import QkLayer


class SpdRun:
    """The components of a run, for a model that is loaded."""

    def __init__(
        self,
        place: Path,
        adapter: ModelAdapter,
        *,
        target: str | None = None,
        harvest: Path | None = None,
    ) -> None:
        """Open the run; factors are read when they are asked for.

        Args:
            place: its folder, or one of its checkpoints.
            adapter: the model that was decomposed.
            target: where the model's sizes are, in place of what the run says.
            harvest: its harvest database; by default looked for where SPD puts it.

        Raises:
            ModelError: no weights, damaged, or of a model with other modules.
        """
        self._place, self._adapter = place, adapter
        self._folder = folder_of(place)
        self._checkpoint = read_checkpoint(find_checkpoint(place))
        self._config = read_config(self._folder)
        self._harvest = harvest or find_harvest(self._folder)
        self._simple = self._find_simple(target)
        check_modules(
            str(self._checkpoint.path), [self._ours(name) for name in self.modules], adapter.net
        )

    @property
    def name(self) -> str:
        """`spd:` and the name of the folder."""
        return f"spd:{self._folder.name}"

    @property
    def modules(self) -> tuple[str, ...]:
        """The decomposed modules as the run names them."""
        return tuple(self._checkpoint.factors)

    @property
    def harvest(self) -> Path | None:
        """The database that means and signs come from."""
        return self._harvest

    def layers(self) -> tuple[int, ...]:
        """The layers in whose attention modules are decomposed."""
        return attention_layers(self._adapter, map(self._ours, self.modules))

    def factors(self, layer: QkLayer, side: Side) -> Factors | None:
        """The factors of one side, or None.

        Raises:
            ModelError: they do not fit, are not finite, or were made of other weights.
        """
        module = self._module(layer, side)
        if module is None:
            return None
        half = layer.q if side == "q" else layer.k
        V, U = self._checkpoint.factors[module]
        columns_O = self._columns(module, layer, side)
        self._check_weight(module, layer, side, columns_O)
        return checked(
            StoredFactors(
                f"{module} in {self._checkpoint.path}", V, U, STRAIGHT, self._notes(module)
            ),
            n_inputs=half.weight_OH.shape[1],
            n_outputs=self._n_outputs(module, len(columns_O)),
            columns_O=columns_O,
        )

    def ci_modules(self, layer: QkLayer, side: Side) -> tuple[str, ...]:
        """The modules of the model whose inputs the causal importances read.

        Raises:
            ModelError: their kind is not known.
        """
        module, functions = self._module(layer, side), self._functions()
        if module is None or functions is None:
            return ()
        functions.check()
        return tuple(dict.fromkeys(self._ours(name) for name in functions.reads(module)))

    def causal_importance(
        self, inputs_by_module: Mapping[str, Tensor], layer: QkLayer, side: Side
    ) -> Tensor | None:
        """Causal importance (T, C) of one side's components; None without configuration or side.

        Args:
            inputs_by_module: (T, H) of each of `ci_modules`, for the whole text.
            layer: the layer.
            side: the side.

        Raises:
            ModelError: an unknown kind, or weights that are missing.
        """
        module, functions = self._module(layer, side), self._functions()
        if module is None or functions is None:
            return None
        inputs = {name: inputs_by_module[self._ours(name)] for name in functions.reads(module)}
        return functions.of(module, inputs)

    def _find_simple(self, target: str | None) -> SimpleTarget | None:
        """The target's sizes, where the run's modules are named as SPD's own classes do."""
        known = {name for name, _module in self._adapter.net.named_modules()}
        if all(name in known for name in self.modules):
            return None
        return None if self._config.is_plain else find_simple(self._folder, self._config, target)

    def _functions(self) -> CausalImportances | None:
        if self._config.ci is None or not self._checkpoint.gates:
            return None
        return CausalImportances(self._config.ci, self._checkpoint.gates, self._checkpoint.factors)

    def _ours(self, name: str) -> str:
        """The module of the model, for one of the run."""
        return name if self._simple is None else self._simple.module(name)

    def _module(self, layer: QkLayer, side: Side) -> str | None:
        """The module of the run that holds a side."""
        if self._simple is None:
            names = [(layer.q if side == "q" else layer.k).module]
        else:
            names = [f"h.{layer.layer}.attn.{each}" for each in (f"{side}_proj", "c_attn")]
        return next((name for name in names if name in self._checkpoint.factors), None)

    def _columns(self, module: str, layer: QkLayer, side: Side) -> Tensor:
        """Which outputs of the run's module the outputs of the side are."""
        half = layer.q if side == "q" else layer.k
        if self._simple is None:
            return half.outputs_O
        order_O = self._simple.order(len(half.outputs_O))
        is_second_part = module.endswith("c_attn") and side == "k"
        return order_O + len(order_O) if is_second_part else order_O

    def _n_outputs(self, module: str, n_side: int) -> int:
        """Outputs of the run's module."""
        if self._simple is not None:
            return 3 * n_side if module.endswith("c_attn") else n_side
        found = self._adapter.net.get_submodule(module)
        assert isinstance(found.weight, Tensor)
        return outputs_first(found, found.weight).shape[0]

    def _check_weight(self, module: str, layer: QkLayer, side: Side, columns_O: Tensor) -> None:
        """Hold the weights that were decomposed against the model's, where they are there."""
        stored = self._checkpoint.target.get(f"{module}.weight")
        if stored is None:
            return
        half = layer.q if side == "q" else layer.k
        if self._simple is None:
            stored = outputs_first(self._adapter.net.get_submodule(module), stored)
        has_all = stored.ndim == 2 and stored.shape[0] > int(columns_O.max())
        check_same_weight(
            str(self._checkpoint.path), stored[columns_O] if has_all else stored, half
        )

    def _notes(self, module: str) -> dict[str, Tensor]:
        if self._harvest is None:
            return {}
        n_components = self._checkpoint.factors[module][0].shape[-1]
        return read_notes(self._harvest, module, n_components=n_components)
