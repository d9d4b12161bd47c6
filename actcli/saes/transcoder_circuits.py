"""transcoder_circuits: one `.pt` file with `cfg` and `state_dict`.

    W_enc (I, D), b_enc (D,), W_dec (D, O), b_dec (I,), b_dec_out (O,)

relu; b_dec is taken off the input, b_dec_out added to the output (of an SAE b_dec). The files of
that library hold `cfg` as an object of a class, which is not loaded: see
`actcli.saes.checkpoint`; with a plain dict they are read.
"""

from actcli.saes.activations import Threshold
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin, Place
from actcli.saes.places import place_of
from actcli.saes.weights import Weights

FORMAT = "transcoder_circuits"
FILES: tuple[str, ...] = ()
_PREFIX = "state_dict."


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.has(*(_PREFIX + key for key in ("W_enc", "b_enc", "W_dec", "b_dec")))


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged.
    """
    del options
    weights = Weights(checkpoint, _PREFIX)
    W_enc_ID = weights.take("W_enc", None, None)
    d_in, n_features = W_enc_ID.shape
    W_dec_DO = weights.take("W_dec", n_features, None)
    bias = "b_dec_out" if weights.has("b_dec_out") else "b_dec"
    return Dictionary(
        origin=_origin(checkpoint, weights, is_transcoder=bias == "b_dec_out"),
        W_enc_ID=W_enc_ID,
        b_enc_D=weights.take("b_enc", n_features),
        W_dec_DO=W_dec_DO,
        b_dec_O=weights.take(bias, W_dec_DO.shape[1]),
        activation=Threshold(),
        centre_I=weights.take("b_dec", d_in),
    )


def _origin(checkpoint: Checkpoint, weights: Weights, *, is_transcoder: bool) -> Origin:
    model = checkpoint.content.get("cfg.model_name")
    return Origin(
        name=checkpoint.path.stem,
        path=checkpoint.path,
        format=FORMAT,
        architecture="transcoder" if is_transcoder else "standard",
        dtype=weights.dtype("W_enc"),
        reads=_place(checkpoint, "hook_point"),
        writes=_place(checkpoint, "out_hook_point") if is_transcoder else None,
        is_transcoder=is_transcoder,
        model=None if model is None else str(model),
    )


def _place(checkpoint: Checkpoint, field: str) -> Place | None:
    hook = checkpoint.content.get(f"cfg.{field}")
    return None if hook is None else place_of(str(hook))
