"""What the configuration files of an SPD run say, read leniently: only the fields that are needed.

Configurations of other versions have other fields beside them, and older ones other names for the
same; a run without a configuration still has its components.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actcli.errors import ModelError, reason

_CONFIGS = ("final_config.yaml", "run_meta.yaml")
_MODEL_CONFIG = "model_config.yaml"
_TRANSFORMERS = "transformers."


@dataclass(frozen=True)
class CiConfig:
    """Which function gives the causal importances."""

    kind: str
    """`mlp`, `vector_mlp`, `shared_mlp` (one per module) or `global_...` (one for all)."""

    sigmoid: str
    """What squashes its outputs."""


@dataclass(frozen=True)
class SpdConfig:
    """What a run says of its target and of its causal importances."""

    target_class: str | None
    """Dotted name of the class of the model that was decomposed."""

    target_name: str | None
    """Where that model was."""

    ci: CiConfig | None
    """None where nothing is said."""

    @property
    def is_plain(self) -> bool:
        """Whether the target is a model of the package transformers as it is."""
        return (self.target_class or "").startswith(_TRANSFORMERS)

    @property
    def class_name(self) -> str | None:
        """The last part of the class's name."""
        return None if self.target_class is None else self.target_class.rsplit(".", 1)[-1]


def read_config(folder: Path) -> SpdConfig:
    """Read the configuration of a run.

    Raises:
        ModelError: it is not readable.
    """
    path = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    if path is None:
        return SpdConfig(None, None, None)
    fields = read_yaml(path)
    target: Mapping[str, Any] = fields
    if isinstance(
        fields.get("pd"), dict
    ):  # the later layout: parts of the run in parts of the file
        target = _part(_part(fields, "target"), "spec")
        fields = fields["pd"]
    return SpdConfig(
        _text(target, "pretrained_model_class", "model_class", "kind"),
        _text(target, "pretrained_model_path", "pretrained_model_name", "run_path", "path", "name"),
        _ci_config(fields),
    )


def find_model_config(folder: Path, named: str | None) -> tuple[Path, dict[str, Any]] | None:
    """Find the sizes of a target of SPD's own classes: the file, and its fields.

    It lies beside the run, or in or above the place that the run names (relative to the run or to
    the working directory): `model_config.yaml`, or the part `model` of a `final_config.yaml`.

    Args:
        folder: the run, or a folder that the user gave.
        named: where the run says that its target was.

    Raises:
        ModelError: what is there is not readable.
    """
    for place in (folder, *_places(folder, named)):
        if (place / _MODEL_CONFIG).is_file():
            return place / _MODEL_CONFIG, read_yaml(place / _MODEL_CONFIG)
        pretrained = place / _CONFIGS[0]
        if pretrained.is_file() and isinstance(model := read_yaml(pretrained).get("model"), dict):
            return pretrained, model
    return None


def find_named(folder: Path, named: str | None) -> Path | None:
    """The file or folder that a run names, seen from the run or from the working directory."""
    if named is None:
        return None
    return next((path for path in (folder / named, Path(named)) if path.exists()), None)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the fields of a YAML file.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"cannot read {path}: {reason(error)}") from error
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds no fields: expected the configuration of a run")
    return fields


def _places(folder: Path, named: str | None) -> list[Path]:
    """Where the target may be described, though its weights be gone: in and above its place."""
    if named is None:
        return []
    n_above = min(2, len(Path(named).parts) - 1)
    paths = [(folder / named).resolve(), Path(named).resolve()]
    return [place for path in paths for place in (path, *path.parents[:n_above])]


def _ci_config(fields: Mapping[str, Any]) -> CiConfig | None:
    """The causal importances, under the names of all versions."""
    current = _part(fields, "ci_config")
    kind = _text(current, "fn_type") or _text(fields, "ci_fn_type", "gate_type")
    if kind is None:
        return None
    is_global = current.get("mode") == "global" or fields.get("use_global_ci") is True
    if is_global and not kind.startswith("global_"):
        kind = f"global_{kind}"
    return CiConfig(kind, _text(fields, "sigmoid_type") or "leaky_hard")


def _part(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = fields.get(name)
    return part if isinstance(part, dict) else {}


def _text(fields: Mapping[str, Any], *names: str) -> str | None:
    """The first of the fields that is a text."""
    return next((value for name in names if isinstance(value := fields.get(name), str)), None)
