"""What the report of `logit-lens` says of the model and of the way from its states to logits."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from actcli.analysis.lens import Lens
    from actcli.commands.logit_lens import LogitLensConfig
    from actcli.models.transformer import HuggingFaceTransformer
    from actcli.reports.logit_lens import LensModelReport, LensReport, SelfTestReport


def describe_model(adapter: "HuggingFaceTransformer") -> "LensModelReport":
    """The model that was read."""
    import torch
    import transformers

    from actcli.capture.manifest import device_name
    from actcli.reports.logit_lens import LensModelReport

    return LensModelReport(
        init=adapter.files.source.init,
        family=adapter.family,
        model_class=type(adapter.net).__name__,
        n_layers=adapter.n_layers,
        d_model=adapter.d_model,
        vocab_size=adapter.vocab_size,
        dtype=str(next(adapter.net.parameters()).dtype).removeprefix("torch."),
        device=device_name(adapter.device),
        weights_sha256=adapter.fingerprint()["weights_sha256"],
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
    )


def describe_lens(
    config: "LogitLensConfig", adapter: "HuggingFaceTransformer", lens: "Lens"
) -> "LensReport":
    """The lens that was chosen, and the norm and head that it goes through."""
    from actcli.reports.logit_lens import LensReport

    translators = lens.translators
    return LensReport(
        lens="translator" if translators else config.lens,
        **adapter.unembedding.describe(),
        translator=str(config.translator) if translators else None,
        untranslated_layers=translators.missing if translators else (),
    )


def describe_self_test(adapter: "HuggingFaceTransformer") -> "SelfTestReport":
    """What the last layer's lens was off by when the model was loaded."""
    from actcli.models.tail import tolerance
    from actcli.reports.logit_lens import SelfTestReport

    assert adapter.tail.error is not None
    dtype = next(adapter.net.parameters()).dtype
    return SelfTestReport(largest_difference=adapter.tail.error, tolerance=tolerance(dtype))
