"""Any file of tensors, with a mapping given by the user: `--format raw --map W_enc=encoder.w ...`.

    W_enc, W_dec                        needed; which way round is told by the shapes
    b_enc, b_dec, threshold, W_skip     as far as there are any
    centre                              what is taken off the input; may be the key of b_dec

A name that is not mapped is looked up as it is.
"""

from torch import Tensor

from actcli.errors import ModelError, UsageError, nearest
from actcli.saes.activations import Activation, Threshold, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.weights import Weights, check_k

FORMAT = "raw"
FILES: tuple[str, ...] = ()
ACTIVATIONS = ("relu", "jumprelu", "topk")
ROLES = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip", "centre")
_SQUARE = "W_enc is square: it was read as (inputs, features)"


def matches(checkpoint: Checkpoint) -> bool:
    """Never by looking: only where the user says so."""
    del checkpoint
    return False


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: tensors are missing, or their shapes do not fit.
        UsageError: the mapping or activation is not of the known words, or more must be said.
    """
    weights, keys = Weights(checkpoint), _keys(checkpoint, options)
    W_enc_ID = _encoder(weights, keys, options)
    d_in, n_features = W_enc_ID.shape
    W_dec_DO = _decoder(weights, keys["W_dec"], n_features)
    d_out = W_dec_DO.shape[1]
    name, activation = _activation(weights, keys, options, n_features)
    b_enc_D = weights.take(keys["b_enc"], n_features) if "b_enc" in keys else None
    b_dec_O = weights.take(keys["b_dec"], d_out) if "b_dec" in keys else None
    is_square = d_in == n_features
    return Dictionary(
        origin=Origin(
            name=checkpoint.path.stem,
            path=checkpoint.path,
            format=FORMAT,
            architecture=name,
            dtype=weights.dtype(keys["W_enc"]),
            notes=(_SQUARE,) if is_square else (),
        ),
        W_enc_ID=W_enc_ID,
        b_enc_D=W_enc_ID.new_zeros(n_features) if b_enc_D is None else b_enc_D,
        W_dec_DO=W_dec_DO,
        b_dec_O=W_enc_ID.new_zeros(d_out) if b_dec_O is None else b_dec_O,
        activation=activation,
        centre_I=weights.take(keys["centre"], d_in) if "centre" in keys else None,
        W_skip_IO=_skip(weights, keys, d_in, d_out),
    )


def _keys(checkpoint: Checkpoint, options: OpenOptions) -> dict[str, str]:
    """The key of each role that there is."""
    for role, key in options.mapping.items():
        if role not in ROLES:
            raise UsageError(f"--map has no {role!r}; {nearest(role, ROLES)}")
        if not checkpoint.has(key):
            raise UsageError(
                f"--map {role}={key}: {checkpoint.path} has no {key!r}; "
                f"{nearest(key, checkpoint.content)}"
            )
    keys = {role: options.mapping.get(role, role) for role in ROLES}
    missing = [role for role in ("W_enc", "W_dec") if not checkpoint.has(keys[role])]
    if missing:
        raise UsageError(
            f"{checkpoint.path} has no {missing[0]!r}; say which of its tensors that is: "
            f"--map {missing[0]}=KEY; it holds: {', '.join(sorted(checkpoint.content)[:24])}"
        )
    return {role: key for role, key in keys.items() if checkpoint.has(key)}


def _encoder(weights: Weights, keys: dict[str, str], options: OpenOptions) -> Tensor:
    """The encoder, inputs first, told by the width of the activations or the length of a bias."""
    found = weights.take(keys["W_enc"], None, None)
    first, second = found.shape
    if first == second:
        return found
    n_features = _features_said(weights, keys, options, found)
    if n_features is None:
        raise UsageError(
            f"{keys['W_enc']} in {weights.checkpoint.path} has the shape ({first}, {second}), and "
            f"nothing tells which of these is the width of the activations: give it with --width"
        )
    return found if second == n_features else found.T


def _features_said(
    weights: Weights, keys: dict[str, str], options: OpenOptions, W_enc: Tensor
) -> int | None:
    sizes = tuple(W_enc.shape)
    if options.width is not None:
        if options.width not in sizes:
            raise ModelError(
                f"{keys['W_enc']} in {weights.checkpoint.path} has the shape {sizes}; expected one "
                f"side of {options.width}, the width of the activations"
            )
        return sizes[1] if sizes[0] == options.width else sizes[0]
    lengths = [len(weights.take(keys[role], None)) for role in ("b_enc",) if role in keys]
    return next((length for length in lengths if length in sizes), None)


def _decoder(weights: Weights, key: str, n_features: int) -> Tensor:
    found = weights.take(key, None, None)
    if found.shape[0] == n_features:
        return found
    return weights.take(key, None, n_features).T


def _skip(weights: Weights, keys: dict[str, str], d_in: int, d_out: int) -> Tensor | None:
    """The skip matrix, outputs first (as most store it) where it is square."""
    if "W_skip" not in keys:
        return None
    found = weights.take(keys["W_skip"], None, None)
    if found.shape == (d_in, d_out) and d_in != d_out:
        return found
    return weights.take(keys["W_skip"], d_out, d_in).T


def _activation(
    weights: Weights, keys: dict[str, str], options: OpenOptions, n_features: int
) -> tuple[str, Activation]:
    name = options.activation or _likely(keys, options)
    if name not in ACTIVATIONS:
        raise UsageError(f"there is no activation {name!r}; {nearest(name, ACTIVATIONS)}")
    if name == "relu":
        return name, Threshold()
    if name == "topk":
        if options.k is None:
            raise UsageError("--activation topk needs --k")
        return name, TopK(check_k(options.k, n_features=n_features, where="--k"))
    if "threshold" not in keys:
        raise UsageError("--activation jumprelu needs a threshold: --map threshold=KEY")
    return name, Threshold(weights.threshold(keys["threshold"], n_features))


def _likely(keys: dict[str, str], options: OpenOptions) -> str:
    if options.k is not None:
        return "topk"
    return "jumprelu" if "threshold" in keys else "relu"
