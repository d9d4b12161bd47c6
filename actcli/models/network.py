"""A network of the package transformers: its sizes, its blocks, and how it is run.

Tensor legend: B rows, T tokens.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from actcli.errors import ModelError, reason

_NO_LIMIT = 1 << 30
_LIMIT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len")


class Network:
    """A model and what its configuration says of it.

    Attributes:
        net: the model with its head.
        n_layers, n_heads, d_model, vocab_size: its sizes.
        max_tokens: the longest input; very large where the configuration names no limit.
        blocks_path, blocks: where its blocks are.
        asks_for_weights: whether its attention gives weights only to those who ask for them.
        needs_mask: whether tokens see the padding behind them, unless it is masked.
    """

    def __init__(self, net: nn.Module) -> None:
        """Find the blocks.

        Raises:
            ModelError: it has no attention heads or tokens, or no list of blocks.
        """
        self.net = net
        model: Any = net  # the methods of PreTrainedModel are not those of nn.Module
        self._model = model
        config = self.config
        try:
            self.n_layers: int = config.num_hidden_layers
            self.n_heads: int = config.num_attention_heads
            self.d_model: int = config.hidden_size
            self.vocab_size: int = config.vocab_size
        except AttributeError as error:
            raise ModelError(
                f"{type(net).__name__} is no transformer that reads tokens: {reason(error)}"
            ) from error
        self.max_tokens = _longest_input(config)
        self.blocks_path, self.blocks = _find_blocks(net, self.n_layers)
        self.asks_for_weights = False
        self.needs_mask = False
        self._attention_shown = False
        self._fast_attention = self._model.config._attn_implementation

    @property
    def config(self) -> Any:
        """The configuration of the language model."""
        return self._model.config.get_text_config(decoder=True)

    def show_attention(self, *, shown: bool) -> None:
        """Compute attention so that its weights exist, or as fast as can be.

        Architectures that fix their implementation when made are loaded with the open one.
        """
        self._attention_shown = shown
        wanted = "eager" if shown else self._fast_attention
        if self._model.config._attn_implementation != wanted:
            self._model.set_attn_implementation(wanted)

    def run(self, tokens_BT: Tensor, mask_BT: Tensor | None = None, *, whole: bool = False) -> None:
        """Run the body, or the whole model with its head.

        Args:
            tokens_BT: token ids.
            mask_BT: True at real tokens; a causal model is given none, since what comes before a
                token cannot see the padding behind it.
            whole: whether the head runs too.
        """
        options: dict[str, Any] = {"input_ids": tokens_BT, "use_cache": False}
        if mask_BT is not None and self.needs_mask:
            options["attention_mask"] = mask_BT.long()
        if self.asks_for_weights and self._attention_shown:
            options["output_attentions"] = True
        with _without_values(tokens_BT):
            (self._model if whole else self._model.base_model)(**options)


def block_kind(block: nn.Module) -> tuple[tuple[str, str], ...]:
    """What tells blocks of different structure apart: the modules in it, and their classes."""
    return tuple((path, type(module).__name__) for path, module in block.named_modules())


def _without_values(tokens_BT: Tensor) -> AbstractContextManager[object]:
    """On the meta device: have code that looks at values skip that, as under a compiler."""
    if tokens_BT.device.type != "meta":
        return nullcontext()
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def _find_blocks(net: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    """The shallowest list of that length, of equals the largest, and its path."""
    lists = [
        (path.count("."), -sum(each.numel() for each in module.parameters()), path, module)
        for path, module in net.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise ModelError(
            f"{type(net).__name__} has no list of {n_layers} blocks: not a transformer that actcli "
            f"can look into"
        )
    _depth, _size, path, blocks = min(lists, key=lambda each: each[:2])
    return path, blocks


def _longest_input(config: Any) -> int:
    for name in _LIMIT_NAMES:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return _NO_LIMIT
