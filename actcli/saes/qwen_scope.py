"""Qwen Scope: one `.pt` file per layer, `layer0.sae.pt`.

    W_enc (D, I), b_enc (D,), W_dec (I, D), b_dec (I,)

The k largest of a token, then a relu; no centring. k is not in the file but in the name of its
repository: `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`.
"""

import re

from actcli.errors import UsageError
from actcli.saes.activations import TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.weights import Weights, check_k

FORMAT = "qwen_scope"
FILES = ("layer*.sae.pt",)
_NAME = re.compile(r"layer(\d+)\.sae\.pt")
_K = re.compile(r"SAE-Res-[^/]*-L0_(\d+)")


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return _NAME.fullmatch(checkpoint.name) is not None


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged.
        UsageError: nothing says what k is.
    """
    weights = Weights(checkpoint)
    W_enc_DI = weights.take("W_enc", None, None)
    n_features, d_in = W_enc_DI.shape
    found = _NAME.fullmatch(checkpoint.name)
    layer = int(found[1]) if found else None
    return Dictionary(
        origin=Origin(
            name=checkpoint.name.removesuffix(".sae.pt"),
            path=checkpoint.path,
            format=FORMAT,
            architecture="topk",
            dtype=weights.dtype("W_enc"),
            reads=Place(checkpoint.name, "layer_outputs", layer),
            is_transcoder=False,
        ),
        W_enc_ID=W_enc_DI.T,
        b_enc_D=weights.take("b_enc", n_features),
        W_dec_DO=weights.take("W_dec", d_in, n_features).T,
        b_dec_O=weights.take("b_dec", d_in),
        activation=TopK(_k(checkpoint, options, n_features)),
    )


def _k(checkpoint: Checkpoint, options: OpenOptions, n_features: int) -> int:
    named = _K.search(checkpoint.path.absolute().as_posix())
    k = int(named[1]) if options.k is None and named else options.k
    if k is None:
        raise UsageError(
            f"{checkpoint.path} is of Qwen Scope, whose k stands only in the name of its "
            f"repository (...-L0_50), which is not in this path: give it with --k"
        )
    return check_k(k, n_features=n_features, where=str(checkpoint.path))
