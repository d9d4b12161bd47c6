"""Where `sae-eval` takes activations from: a dump, or a model that reads texts."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from actcli import builtin
from actcli.commands.text_options import open_text_samples
from actcli.errors import UsageError
from actcli.sites import MODULE_PREFIX, SITES

if TYPE_CHECKING:
    import torch

    from actcli.capture.token_stream import TokenRules, TokenStream
    from actcli.commands.sae_eval import SaeEvalConfig
    from actcli.commands.text_options import TextInput
    from actcli.models.adapter import ModelAdapter
    from actcli.samples.tokenizer import TextTokenizer
    from actcli.store.reader import Dump

_LAYERED = 4  # axes of (N, L, T, d)


class TokenSource(Protocol):
    """Activations by key, opened when it is known which are wanted."""

    @property
    def name(self) -> str:
        """The file, or the model."""
        ...

    @property
    def model(self) -> str | None:
        """What the model is called, where that is known."""
        ...

    @property
    def tokenizer(self) -> "TextTokenizer | None":
        """What names tokens; None where it is not known."""
        ...

    def key_of(self, place: str, layer: int | None) -> str | None:
        """Return the key of a site or of what the user gave; None if there is none."""
        ...

    def known(self) -> str:
        """Say in words which keys there are."""
        ...

    def open(
        self, keys: Sequence[str], *, normed: Sequence[str], most_tokens: int | None = None
    ) -> "TokenStream":
        """Open the tokens with these activations; stop after some of them, if told so."""
        ...


@dataclass
class DumpSource:
    """A dump, or any file of activations; see `TokenSource`."""

    dump: "Dump"
    rules: "TokenRules"
    device: "torch.device"
    tokenizer: "TextTokenizer | None" = None

    @property
    def name(self) -> str:
        """The file."""
        return str(self.dump.path)

    @property
    def model(self) -> str | None:
        """The model that was dumped."""
        return self.dump.metadata.get("checkpoint")

    def key_of(self, place: str, layer: int | None) -> str | None:
        """Return the tensor, with a layer where it has several."""
        tensors = self.dump.header.tensors
        name, _dot, number = place.rpartition(".")
        if place not in tensors:
            return place if name in tensors and number.lstrip("-").isdecimal() else None
        if len(tensors[place].shape) == _LAYERED and layer is not None:
            return f"{place}.{layer}"
        return place

    def known(self) -> str:
        """Name its tensors."""
        found = [f"{key} {list(info.shape)}" for key, info in self.dump.header.tensors.items()]
        return f"{self.name} has {', '.join(found) or 'no tensor at all'}"

    def open(
        self, keys: Sequence[str], *, normed: Sequence[str], most_tokens: int | None = None
    ) -> "TokenStream":
        """Open tensors of the dump."""
        from actcli.capture.token_stream import open_dumped_tokens

        rules = _stopping(self.rules, most_tokens)
        return open_dumped_tokens(
            self.dump, keys=keys, rules=rules, normed=normed, device=self.device
        )


@dataclass
class ModelSource:
    """A model that runs; see `TokenSource`."""

    adapter: "ModelAdapter"
    texts: "TextInput"
    rules: "TokenRules"
    device: "torch.device"
    batch_tokens: int

    @property
    def name(self) -> str:
        """The model."""
        return self.adapter.files.source.init

    @property
    def model(self) -> str | None:
        """The model."""
        return self.name

    @property
    def tokenizer(self) -> "TextTokenizer | None":
        """Its own."""
        return self.texts.tokenizer

    def key_of(self, place: str, layer: int | None) -> str | None:
        """Return the site, with a layer where each has its own."""
        if place.startswith(MODULE_PREFIX):
            return place
        sites = {site.name: site for site in SITES}
        name, _dot, number = place.rpartition(".")
        if name in sites and number.lstrip("-").isdecimal():
            return place
        if place not in sites:
            return None
        if not sites[place].per_layer:
            return place
        return None if layer is None else f"{place}.{layer}"

    def known(self) -> str:
        """Say what a place looks like."""
        return f"sites of {self.name} are named site.layer, such as mlp_input.8 and mlp_out.8"

    def open(
        self, keys: Sequence[str], *, normed: Sequence[str], most_tokens: int | None = None
    ) -> "TokenStream":
        """Prepare to run the model."""
        from actcli.capture.token_stream import open_model_tokens

        return open_model_tokens(
            self.adapter,
            self.texts.samples,
            places=keys,
            rules=_stopping(self.rules, most_tokens),
            batch_tokens=self.batch_tokens,
            normed=normed,
            device=self.device,
        )


def open_source(
    config: "SaeEvalConfig", device: "torch.device", stack: ExitStack
) -> DumpSource | ModelSource:
    """Open the dump, or load the model and its texts.

    Args:
        config: the options, with the built-in things where nothing was asked.
        device: where activations are handed out.
        stack: keeps the dump open.

    Raises:
        ActcliError: nothing is given, or it cannot be read.
    """
    from actcli.store.reader import open_dump

    if config.from_dump is not None:
        dump = stack.enter_context(open_dump(config.from_dump.expanduser()))
        tokenizer = _tokenizer_of(dump.metadata.get("checkpoint"), config)
        return DumpSource(dump, _rules(config, tokenizer), device, tokenizer)
    if config.init is None:
        raise UsageError(
            "there are no activations to judge on: give --from-dump FILE, or --init MODEL with "
            "--text, --dataset or another source of texts"
        )
    return _open_model(config, config.init, device)


def _open_model(config: "SaeEvalConfig", init: str, device: "torch.device") -> ModelSource:
    from actcli.models import find_model

    found = find_model(init, config.load_options)
    if found.reads != "text":
        raise UsageError(
            f"{init} is a model of the family {found.family.FAMILY!r}, which reads no texts: "
            f"capture its activations with actcli dump, and give them with --from-dump"
        )
    texts = open_text_samples(
        config,
        found.source.path,
        n_samples=config.n_samples,
        default=builtin.TEXT if init == builtin.TEXT_MODEL else None,
        trust_remote_code=config.trust_remote_code,
    )
    adapter = found.load(device=str(device))
    rules = _rules(config, texts.tokenizer)
    return ModelSource(adapter, texts, rules, device, config.batch_tokens)


def _rules(config: "SaeEvalConfig", tokenizer: "TextTokenizer | None") -> "TokenRules":
    from actcli.capture.token_stream import TokenRules

    bos = None if tokenizer is None else tokenizer.bos_id
    return TokenRules(
        exclude_first=config.exclude_bos,
        bos_ids=() if bos is None else (bos,),
        exclude_tokens=config.exclude_tokens,
        exclude_positions=config.exclude_positions or (),
        max_norm_multiple=config.max_norm_multiple,
        most_tokens=config.most_tokens,
    )


def _stopping(rules: "TokenRules", most_tokens: int | None) -> "TokenRules":
    return rules if most_tokens is None else replace(rules, most_tokens=most_tokens)


def _tokenizer_of(model: str | None, config: "SaeEvalConfig") -> "TextTokenizer | None":
    """The tokenizer of a model on this machine; nothing is downloaded for a dump."""
    from actcli.models.source import find_source
    from actcli.samples.tokenizer import has_tokenizer, load_tokenizer

    if model is None or not (builtin.is_builtin(model) or Path(model).exists()):
        return None
    folder = find_source(model).path
    if not has_tokenizer(folder):
        return None
    return load_tokenizer(folder, trust_remote_code=config.trust_remote_code)
