"""`cfg.json` of SAELens, of all its versions, in one form."""

from dataclasses import dataclass
from typing import Any

from actcli.errors import ModelError
from actcli.saes.checkpoint import Checkpoint

CONFIG = "cfg.json"
REFUSED = {
    "matching_pursuit": "its features come from a search step by step over a tied decoder, not "
    "from an encoder, so that encoding, thresholds and encoder metrics have no meaning here; it "
    "is not supported",
    "temporal": "its features depend on the tokens before (attention over the context), and "
    "here tokens are read one by one; it is not supported",
}
"""Architectures that are known and cannot be evaluated, and why."""


@dataclass(frozen=True)
class SaeLensConfig:
    """What of it counts."""

    architecture: str
    activation: str
    k: Any
    centres: bool
    rescales: bool
    normalisation: str
    is_finetuned: bool
    hook: str | None
    hook_out: str | None
    layer: int | None
    model: Any
    widths: Any

    @property
    def is_transcoder(self) -> bool:
        """Whether it writes elsewhere than it reads."""
        return "transcoder" in self.architecture


def read_config(checkpoint: Checkpoint) -> SaeLensConfig:
    """Read the configuration beside the weights.

    Raises:
        ModelError: it is missing or damaged.
    """
    fields = checkpoint.config(CONFIG)
    metadata = fields.get("metadata")
    merged = {**(metadata if isinstance(metadata, dict) else {}), **fields}
    activation = str(merged.get("activation_fn_str") or merged.get("activation_fn") or "relu")
    architecture = str(merged.get("architecture") or "standard")
    if architecture == "standard" and activation == "topk":
        architecture = "topk"
    layer = merged.get("hook_layer", merged.get("hook_point_layer"))
    return SaeLensConfig(
        architecture=architecture,
        activation=activation,
        k=merged.get("k", _details(merged, "activation_fn_kwargs").get("k")),
        centres=bool(merged.get("apply_b_dec_to_input", True)),
        rescales=_rescales(merged, architecture),
        normalisation=_normalisation(merged.get("normalize_activations"), checkpoint),
        is_finetuned=bool(merged.get("finetuning_scaling_factor")),
        hook=merged.get("hook_name") or merged.get("hook_point"),
        hook_out=merged.get("hook_name_out") or merged.get("hook_point_out"),
        layer=layer if isinstance(layer, int) else None,
        model=merged.get("model_name"),
        widths=merged.get(
            "matryoshka_widths",
            _details(merged, "training_architecture_details").get("matryoshka_widths"),
        ),
    )


def _rescales(fields: dict[str, Any], architecture: str) -> bool:
    """Checkpoints of training are rescaled unless they say otherwise, exported ones are not."""
    if "topk" not in architecture:
        return False
    return bool(fields.get("rescale_acts_by_decoder_norm", architecture.endswith("batchtopk")))


def _details(fields: dict[str, Any], name: str) -> dict[str, Any]:
    found = fields.get(name)
    return found if isinstance(found, dict) else {}


def _normalisation(value: Any, checkpoint: Checkpoint) -> str:
    if isinstance(value, bool) or value is None:
        return "expected_average_only_in" if value else "none"
    if isinstance(value, str):
        return value
    raise ModelError(
        f"{CONFIG} in {checkpoint.folder} says normalize_activations: {value!r}; expected a word"
    )
