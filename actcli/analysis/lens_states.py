"""Which sites a lens reads, and how captured activations become its states.

Layers as in `reports.lens_table`: 0 enters block 0, l is what block l-1 gives or adds.

Tensor legend: B texts, L captured blocks, T tokens, H hidden.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from actcli.analysis.lens import State
from actcli.reports.lens_table import STREAMS

_SITES = {"resid": "layer_outputs", "mid": "resid_mid", "attn": "attn_out", "mlp": "mlp_out"}
_FINAL = "layer_outputs"
_FIRST = "embeddings"


@dataclass(frozen=True)
class WantedStates:
    """The streams and layers of a lens."""

    streams: tuple[str, ...]
    layers: tuple[int, ...]
    n_layers: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks to capture: those asked for, and the last, which says what the model says."""
        return tuple(sorted({layer - 1 for layer in self.layers if layer} | {self.n_layers - 1}))

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites to capture."""
        first = [_FIRST] if "resid" in self.streams and 0 in self.layers else []
        return tuple(dict.fromkeys([_FINAL, *first, *(_SITES[each] for each in self.streams)]))

    def of(
        self, read: Callable[[str], Tensor], *, blocks: Sequence[int]
    ) -> tuple[Tensor, dict[State, Tensor]]:
        """Return the final stream (B, T, H), and the states, each (B, T, H).

        Args:
            read: gives a site: (B, L, T, H), `embeddings` (B, T, H).
            blocks: which blocks the layer axis stands for.
        """
        sites = {name: read(name) for name in self.sites}
        final_BTH = sites[_FINAL][:, list(blocks).index(self.n_layers - 1)]
        states: dict[State, Tensor] = {}
        for stream in (each for each in STREAMS if each in self.streams):
            for layer in self.layers:
                if layer == 0:
                    if stream == "resid":
                        states[State(stream, 0)] = sites[_FIRST]
                elif stream == "resid" and layer == self.n_layers:
                    states[State(stream, layer)] = final_BTH
                else:
                    place = list(blocks).index(layer - 1)
                    states[State(stream, layer)] = sites[_SITES[stream]][:, place]
        return final_BTH, states
