"""What `sae-eval` judges: a dictionary, and the tokens that it is judged on."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

_PLAIN = ConfigDict(use_attribute_docstrings=True, frozen=True, extra="forbid")


class DictionaryDescription(BaseModel):
    """Which dictionary it is."""

    model_config = _PLAIN

    name: str
    path: str
    format: str
    architecture: str
    kind: Literal["sae", "transcoder"]
    d_in: int
    d_out: int
    n_features: int
    dtype: str
    """As stored; it is evaluated in float32."""

    x: str
    """The activation that it reads: a key of the dump, or `site.layer`."""

    y: str
    """Its target."""

    sha256: str
    """Of the file with the weights."""

    prefixes: tuple[int, ...] = ()
    """Features of each nested part."""

    notes: tuple[str, ...] = ()


class TokenSet(BaseModel):
    """Which tokens were counted."""

    model_config = _PLAIN

    source: str
    """The dump, or the model and its texts."""

    n_samples: int
    n_tokens: int
    """Those that count."""

    n_excluded: int
    """Those that were left out, by all rules together."""

    rules: tuple[str, ...] = ()
    """The rules, in words: `first token of each sample`, ..."""

    sha256: str
    """Of the numbers of sample and position of all tokens that count: equal for equal sets."""
