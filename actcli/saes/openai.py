"""OpenAI's `sparse_autoencoder`: one `.pt` file.

    pre_bias (I,), encoder.weight (D, I), latent_bias (D,), decoder.weight (I, D)
    activation, activation_state_dict.{k, postact_fn}

pre_bias is taken off the input and added to the output. TopK dictionaries standardise the input.
"""

from actcli.errors import ModelError
from actcli.saes.activations import Activation, Threshold, TopK
from actcli.saes.checkpoint import Checkpoint, OpenOptions
from actcli.saes.dictionary import Dictionary, Origin
from actcli.saes.normalisations import IDENTITY, Standardised
from actcli.saes.weights import Weights, check_k

FORMAT = "openai"
FILES: tuple[str, ...] = ()


def matches(checkpoint: Checkpoint) -> bool:
    """Whether it looks like one."""
    return checkpoint.has("pre_bias", "latent_bias", "encoder.weight")


def load(checkpoint: Checkpoint, options: OpenOptions) -> Dictionary:
    """Read it.

    Raises:
        ModelError: it is damaged, or of another activation.
    """
    del options
    weights = Weights(checkpoint)
    W_enc_DI = weights.take("encoder.weight", None, None)
    n_features, d_in = W_enc_DI.shape
    pre_bias_I = weights.take("pre_bias", d_in)
    name = str(checkpoint.content.get("activation", "ReLU"))
    return Dictionary(
        origin=Origin(
            name=checkpoint.path.stem,
            path=checkpoint.path,
            format=FORMAT,
            architecture=name,
            dtype=weights.dtype("encoder.weight"),
            is_transcoder=False,
        ),
        W_enc_ID=W_enc_DI.T,
        b_enc_D=weights.take("latent_bias", n_features),
        W_dec_DO=weights.take("decoder.weight", d_in, n_features).T,
        b_dec_O=pre_bias_I,
        activation=_activation(weights, name, n_features),
        centre_I=pre_bias_I,
        normalisation=Standardised() if name == "TopK" else IDENTITY,
    )


def _activation(weights: Weights, name: str, n_features: int) -> Activation:
    where, state = str(weights.checkpoint.path), "activation_state_dict"
    if name == "ReLU":
        return Threshold()
    if name != "TopK":
        raise ModelError(f"{where} has the activation {name!r}; expected ReLU or TopK")
    after = weights.checkpoint.content.get(f"{state}.postact_fn", "ReLU")
    if after not in ("ReLU", "Identity"):
        raise ModelError(f"{where} has {after!r} after its top-k; expected ReLU or Identity")
    k = check_k(weights.integer(f"{state}.k"), n_features=n_features, where=where)
    return TopK(k, relu=after == "ReLU")
