"""What `attn-plot` reads: samples, layers and weights of a dump, and the model if need be."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.errors import ModelError, UsageError
from actcli.terminal.console import Output
from actcli.terminal.fields import IntRanges

if TYPE_CHECKING:
    from actcli.analysis.attention_tokens import ChosenTexts
    from actcli.commands.attn_plot import AttnPlotConfig
    from actcli.models.adapter import ModelAdapter
    from actcli.reports.attention import AttentionMaps, TextMaps
    from actcli.samples.tokenizer import TextTokenizer
    from actcli.store.reader import Dump

ALL_LAYERS = "all"


def read_maps(config: "AttnPlotConfig", dump: "Dump", output: Output) -> "AttentionMaps | TextMaps":
    """Read or recompute the attention that is asked for.

    Raises:
        ActcliError: the dump, the model and the options do not fit together.
    """
    from actcli.analysis.attention_maps import (
        BOARDS,
        attention_layers,
        check_attention_dump,
        samples_key,
    )

    check_attention_dump(dump)
    layers = _chosen_layers(config, dump, attention_layers(dump))
    samples = _chosen_samples(config, dump)
    if samples_key(dump) == BOARDS:
        return _read_boards(config, dump, output, samples, layers)
    return _read_texts(config, dump, output, samples, layers)


def _read_boards(
    config: "AttnPlotConfig",
    dump: "Dump",
    output: Output,
    samples: list[int],
    layers: list[int],
) -> "AttentionMaps":
    from actcli.analysis.attention_maps import holds_weights, read_boards, stored_attention

    boards = read_boards(dump, samples)
    if holds_weights(dump) and config.init is None:
        return stored_attention(dump, samples, boards, layers=layers)
    from actcli.analysis.attention_recomputed import recomputed_attention
    from actcli.capture.belongs import check_belongs
    from actcli.samples.boards import GivenBoards

    adapter = _load_model_of(config, dump)
    check_belongs(dump, adapter, sample=GivenBoards(boards[:1]), row=samples[0])
    if holds_weights(dump):
        return stored_attention(dump, samples, boards, layers=layers)
    _note_rounding(dump, output)
    return recomputed_attention(dump, samples, boards, adapter, layers=layers)


def _read_texts(
    config: "AttnPlotConfig",
    dump: "Dump",
    output: Output,
    samples: list[int],
    layers: list[int],
) -> "TextMaps":
    from actcli.analysis.attention_maps import holds_weights
    from actcli.analysis.attention_tokens import stored_text_attention

    texts = _name_tokens(config, dump, output, samples)
    if holds_weights(dump) and config.init is None:
        return stored_text_attention(dump, texts, layers=layers)
    from actcli.analysis.attention_recomputed import recomputed_text_attention
    from actcli.capture.belongs import check_belongs
    from actcli.samples.given_tokens import GivenTokens

    adapter = _load_model_of(config, dump)
    check_belongs(dump, adapter, sample=GivenTokens(texts.token_ids[0]), row=samples[0])
    if holds_weights(dump):
        return stored_text_attention(dump, texts, layers=layers)
    _note_rounding(dump, output)
    return recomputed_text_attention(dump, texts, adapter, layers=layers)


def _note_rounding(dump: "Dump", output: Output) -> None:
    dtype = dump.check_key("attn_norm").dtype
    if dtype in ("BF16", "F16"):
        output.note(
            f"attn_norm is stored in {dtype}: recomputed weights carry its rounding; dump "
            f"attn_weights, or attn_norm with --dtype fp32, for exact ones"
        )


def _name_tokens(
    config: "AttnPlotConfig", dump: "Dump", output: Output, samples: list[int]
) -> "ChosenTexts":
    """Read the texts; their tokens have words where the model's folder has a tokenizer."""
    from actcli.analysis.attention_tokens import read_texts

    folder = _model_folder(config, dump)
    try:
        tokenizer = None if folder is None else _tokenizer_in(folder)
    except ModelError as error:
        output.warn(f"{error}: tokens are shown by their ids")
        tokenizer = None
    else:
        if tokenizer is None:
            output.note(
                f"no tokenizer in {folder or 'the model that the dump names'}: tokens are shown "
                f"by their ids"
            )
    if tokenizer is None:
        return read_texts(dump, samples)
    return read_texts(dump, samples, name=tokenizer.text_of)


def _tokenizer_in(folder: Path) -> "TextTokenizer | None":
    from actcli.samples.tokenizer import has_tokenizer, load_tokenizer

    return load_tokenizer(folder) if has_tokenizer(folder) else None


def _model_folder(config: "AttnPlotConfig", dump: "Dump") -> Path | None:
    """Where the model's files are on this machine, if they are: nothing is downloaded for words."""
    from actcli.models.source import find_source

    if config.init is not None:
        return find_source(config.init).path
    recorded = (_recorded_path(dump), dump.metadata.get("checkpoint"))
    return next((Path(each) for each in recorded if each and Path(each).exists()), None)


def _recorded_path(dump: "Dump") -> str:
    return str(dump.manifest.get("model", {}).get("path", ""))


def _load_model_of(config: "AttnPlotConfig", dump: "Dump") -> "ModelAdapter":
    """Load --init, or the model that the dump was made from, to compute as it did for the dump.

    The manifest knows the folder's whole path; the plain key has it as it was typed.
    """
    from actcli.models import load_model
    from actcli.models.source import LoadOptions

    recorded = dump.manifest.get("config", {})
    dtype = recorded.get("model_dtype")
    if config.init is not None:
        return load_model(config.init, options=LoadOptions(dtype=dtype))
    typed = dump.metadata.get("checkpoint")
    if typed is None:
        raise UsageError(
            f"{dump.path} holds no attn_weights and does not name its model: give --init"
        )
    whole, is_local = _recorded_path(dump), "://" not in typed
    options = LoadOptions(dtype=dtype, revision=recorded.get("revision"))
    try:
        return load_model(
            whole if is_local and whole and Path(whole).exists() else typed, options=options
        )
    except ModelError as error:
        raise ModelError(
            f"{error} ({dump.path} names it as its model; --init gives another)"
        ) from error


def _chosen_layers(config: "AttnPlotConfig", dump: "Dump", held: Sequence[int]) -> list[int]:
    """Model layers, counted from 0, rising."""
    if config.layer == ALL_LAYERS:
        return sorted(held)
    n_layers = max(max(held) + 1, _recorded_layers(dump))
    try:
        layers = sorted(each - 1 for each in IntRanges.parse(config.layer).resolve(n_layers + 1))
    except UsageError:
        layers = [-1]
    if layers[0] < 0:
        raise UsageError(
            f"--layer {config.layer}: the model has layers 1 to {n_layers}, counted from 1; give "
            f"some of them, or all"
        )
    absent = [layer + 1 for layer in layers if layer not in held]
    if absent:
        have = ", ".join(str(layer + 1) for layer in held)
        raise UsageError(f"--layer: {dump.path} does not hold layer {absent[0]}; it holds {have}")
    return layers


def _recorded_layers(dump: "Dump") -> int:
    recorded = dump.metadata.get("num_layers", "")
    return int(recorded) if recorded.isdecimal() else 0


def _chosen_samples(config: "AttnPlotConfig", dump: "Dump") -> list[int]:
    import numpy as np

    from actcli.analysis.attention_maps import samples_key

    n_rows = dump.check_key(samples_key(dump)).shape[0]
    if config.samples is not None:
        return list(config.samples.resolve(n_rows, name="sample"))
    rng = np.random.default_rng(config.seed)
    return [int(row) for row in rng.choice(n_rows, min(config.n_boards, n_rows), replace=False)]
