"""Options of every command that runs a model: how it is loaded."""

from typing import TYPE_CHECKING, Annotated, Literal

from actcli.terminal.config import CommandConfig
from actcli.terminal.fields import Cli

if TYPE_CHECKING:
    from actcli.models.source import LoadOptions

MODEL_PANEL = "Model"


class ModelOptions(CommandConfig):
    """How a model of the package transformers is loaded."""

    model_dtype: Annotated[Literal["fp32", "fp16", "bf16"] | None, Cli(panel=MODEL_PANEL)] = None
    """What the model computes in; as its file is stored, if not given."""

    device_map: Annotated[Literal["auto"] | None, Cli(panel=MODEL_PANEL)] = None
    """auto spreads a model that is larger than one GPU over all devices (package accelerate)."""

    revision: Annotated[str | None, Cli(panel=MODEL_PANEL)] = None
    """Branch, tag or commit of an hf:// model; the same as @REVISION behind its name."""

    trust_remote_code: Annotated[bool, Cli(panel=MODEL_PANEL)] = False
    """Run Python code that lies beside the weights; never done without this."""

    @property
    def load_options(self) -> "LoadOptions":
        """The same, in the words of the models' room."""
        from actcli.models.source import LoadOptions

        return LoadOptions(
            dtype=self.model_dtype,
            device_map=self.device_map,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
        )
