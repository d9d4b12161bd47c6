"""`sae-eval --loss`: what the model loses with each reconstruction in the place of its target."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from actcli.commands.sae_source import ModelSource
from actcli.errors import UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from torch import Tensor

    from actcli.analysis.loss_recovered import LossResult
    from actcli.capture.splice_logits import LogitsBatch
    from actcli.commands.sae_setup import SaeSetup
    from actcli.saes.dictionary import Dictionary


def losses(setup: "SaeSetup", output: Output) -> "list[LossResult | None]":
    """Run the model again, with each dictionary in it.

    Raises:
        UsageError: there is no model.
        CaptureError: a target cannot be replaced.
    """
    from actcli.analysis.loss_recovered import measure_losses

    _note_rounding(setup, output)
    with output.progress(setup.stream.n_tokens, "replacing activations") as advance:
        return measure_losses(_batches(setup, advance), n_dictionaries=len(setup.dictionaries))


def _note_rounding(setup: "SaeSetup", output: Output) -> None:
    if not isinstance(setup.source, ModelSource):
        return
    dtype = next(setup.source.adapter.net.parameters()).dtype
    if dtype.itemsize < 4:
        output.note(
            f"the model computes in {str(dtype).removeprefix('torch.')}: small differences of its "
            f"loss are its own rounding; --model-dtype fp32 is without"
        )


def _batches(setup: "SaeSetup", advance: Callable[[int], None]) -> "Iterator[LogitsBatch]":
    import torch

    from actcli.capture.splice import Spliced, run_spliced

    source = setup.source
    if not isinstance(source, ModelSource):
        raise UsageError("--loss needs a model: give --init")
    spliced: list[Spliced] = [
        Spliced(keys.x, keys.y, _rebuild(each))
        for each, keys in zip(setup.dictionaries, setup.keys, strict=True)
    ]
    with torch.no_grad():
        for batch in run_spliced(
            source.adapter,
            source.texts.samples,
            spliced,
            rules=source.rules,
            batch_tokens=source.batch_tokens,
        ):
            yield batch
            advance(len(batch.samples_N))


def _rebuild(dictionary: "Dictionary") -> "Callable[[Tensor], Tensor]":
    """What makes reconstructions of inputs."""

    def rebuild(x_NI: "Tensor") -> "Tensor":
        return dictionary.decode(dictionary.encode(x_NI), x_NI)

    return rebuild
