"""The numbers of the Matryoshka transcoder program, as it computes them: `--compat upstream`.

They answer no question better than the report's own, but a figure of that program can be checked
against them. What differs from the report, all as coded there:

- Tokens are cut into batches, 128 tokens each whatever batch size was asked for; mse, mae, fvu and
  cosine are computed for each batch, and averaged with the batches' numbers of tokens as weights.
- fvu of a batch is mean(e^2) / (var(t) + 1e-8), with the unbiased variance of all its elements
  about one mean, not one for each dimension.
- cosine takes a batch as one long vector. (Its evaluator of single batches takes the mean of the
  tokens instead, under the same name; that one is not offered.)
- A feature counts as active where it is above 0; the median of L0 is the lower one.
- No feature is ever dead: the counter is not stored with the weights, and nothing raises it.
- Absorption counts ordered pairs, and of more than 8192 features a random 8192. There the draw is
  another one on each run; here it is seeded, so that two runs agree.
- All is computed in one dtype: there bfloat16 unless it is told otherwise, by the command here that
  of the stored weights.

A number that is not defined, like the spread of a single token, is None, where there it is NaN.

Tensor legend: B tokens of a batch, N tokens, I input width, O output width, D features, C counts.
"""

import math
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from actcli.errors import DumpError
from actcli.saes.activations import Activation
from actcli.saes.dictionary import Dictionary

BATCH_TOKENS = 128
ABSORPTION_THRESHOLD = 0.9
MOST_ROWS = 8192
"""Decoder rows that are compared with one another, at most."""

_SEED = 0
_ROWS_AT_ONCE = 1024
_COMPARED = (
    ("fvu", "reconstruction", "fvu", -1),
    ("absorption", "absorption", "score", -1),
    ("cosine_sim", "reconstruction", "cosine_similarity", 1),
)
_INTERPRETATION = (
    "Lower is better for FVU and Absorption. "
    "Higher is better for cosine similarity and alive features."
)
_AVERAGED = ("mse", "mae", "fvu", "cosine_similarity")


class UpstreamPass:
    """A running evaluation; its memory does not grow with the number of tokens."""

    def __init__(
        self,
        dictionary: Dictionary,
        *,
        batch_tokens: int = BATCH_TOKENS,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Begin with no token.

        Args:
            dictionary: what to evaluate.
            batch_tokens: tokens of a batch; the last one may have fewer.
            dtype: weights, activations and all that is computed of them are rounded to it.
        """
        self._forward = _Forward(dictionary, dtype)
        self._batch_tokens = batch_tokens
        self._dtype = dtype
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._totals = dict.fromkeys(_AVERAGED, 0.0)
        self._l0_counts_C = torch.zeros(dictionary.n_features + 1, dtype=torch.int64)
        self._sum_acts, self._n_acts = 0.0, 0
        self._largest = -math.inf

    def add(self, x_NI: Tensor, y_NO: Tensor) -> None:
        """Count tokens, any number of them: batches are cut across calls.

        Args:
            x_NI: inputs.
            y_NO: their targets; the inputs again for an SAE.
        """
        while len(x_NI):
            missing = self._batch_tokens - sum(len(x_BI) for x_BI, _ in self._waiting)
            self._waiting.append((x_NI[:missing].clone(), y_NO[:missing].clone()))
            if len(x_NI) >= missing:
                self._add_waiting()
            x_NI, y_NO = x_NI[missing:], y_NO[missing:]

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the content of that program's `metrics.json`, under its keys.

        The tokens of an unfinished batch become a batch of their own; tokens added afterwards
        begin another one.

        Raises:
            DumpError: there was no token.
        """
        if self._waiting:
            self._add_waiting()
        n_tokens = int(self._l0_counts_C.sum())
        if not n_tokens:
            raise DumpError("no token was left to evaluate: expected at least one")
        n_features = len(self._forward.W_dec_DO)
        averages = {name: _defined(total / n_tokens) for name, total in self._totals.items()}
        return {
            "absorption": upstream_absorption(self._forward.W_dec_DO),
            "feature_utilization": {
                "dead_count": 0,
                "dead_percentage": 0.0,
                "alive_count": n_features,
                "total_features": n_features,
            },
            "sparsity": _sparsity(self._l0_counts_C),
            "reconstruction": averages,
            "activation_stats": {
                "max_activation": self._largest,
                "mean_activation": self._mean_activation(),
            },
        }

    def _add_waiting(self) -> None:
        """Evaluate the tokens that wait as one batch."""
        x_BI, y_BO = (torch.cat(pieces) for pieces in zip(*self._waiting, strict=True))
        self._waiting = []
        acts_BD, rebuilt_BO = self._forward(x_BI)
        target_BO = y_BO.to(rebuilt_BO)
        for name, value in _batch_values(target_BO, rebuilt_BO).items():
            self._totals[name] += value * len(x_BI)
        active_BD = acts_BD > 0
        l0_B = active_BD.sum(-1).cpu()
        self._l0_counts_C += torch.bincount(l0_B, minlength=len(self._l0_counts_C))
        self._sum_acts += acts_BD[active_BD].sum(dtype=torch.float64).item()
        self._n_acts += int(l0_B.sum())
        self._largest = max(self._largest, acts_BD.max().item())

    def _mean_activation(self) -> float:
        """The mean of the positive activations, rounded as that program's dtype has it."""
        mean = self._sum_acts / self._n_acts if self._n_acts else 0.0
        return torch.tensor(mean, dtype=self._dtype).item()


def upstream_absorption(
    W_dec_DO: Tensor, *, most_rows: int = MOST_ROWS, seed: int = _SEED
) -> dict[str, Any]:
    """Count ordered pairs of decoder rows with |cosine| > 0.9, divided by n * (n - 1).

    Args:
        W_dec_DO: decoder (D, O); rows are normalised in its dtype, then compared in float32.
        most_rows: of more rows, so many are drawn.
        seed: of that draw.
    """
    rows_DO = F.normalize(W_dec_DO, dim=-1).float()
    if len(rows_DO) > most_rows:
        drawn = torch.randperm(len(rows_DO), generator=torch.Generator().manual_seed(seed))
        rows_DO = rows_DO[drawn[:most_rows].to(rows_DO.device)]
    n, above = len(rows_DO), 0
    for start in range(0, n, _ROWS_AT_ONCE):
        cosines = (rows_DO[start : start + _ROWS_AT_ONCE] @ rows_DO.T).abs()
        cosines.diagonal(start).zero_()
        above += int((cosines > ABSORPTION_THRESHOLD).sum())
    return {
        "score": above / max(1, n * (n - 1)),
        "pairs_above_threshold": above,
        "threshold": ABSORPTION_THRESHOLD,
    }


def upstream_comparison(ours: dict[str, Any], google: dict[str, Any]) -> dict[str, Any]:
    """Return the content of that program's `comparison.json`, for two of `metrics()`.

    Differences are ours minus the other's. As there, a tie goes to the other side; where a number
    is missing, difference and winner are None, where there the other side wins.
    """
    found: dict[str, Any] = {}
    for name, group, key, sign in _COMPARED:
        first, second = ours[group][key], google[group][key]
        known = first is not None and second is not None
        found[f"{name}_difference"] = first - second if known else None
        winner = "ours" if known and sign * first > sign * second else "google"
        found[f"{name}_winner"] = winner if known else None
    summary = {"interpretation": _INTERPRETATION}
    return {"summary": summary, "ours": ours, "google": google, "comparison": found}


class _Forward:
    """Features and reconstruction, dense, every step of it in one dtype."""

    def __init__(self, dictionary: Dictionary, dtype: torch.dtype) -> None:
        def rounded(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(dtype)

        self._W_enc_ID = dictionary.W_enc_ID.to(dtype)
        self._b_enc_D = dictionary.b_enc_D.to(dtype)
        self.W_dec_DO = dictionary.W_dec_DO.to(dtype)
        self._b_dec_O = dictionary.b_dec_O.to(dtype)
        self._centre_I = rounded(dictionary.centre_I)
        self._scale_D = rounded(dictionary.scale_D)
        self._W_skip_IO = rounded(dictionary.W_skip_IO)
        self._normalisation = dictionary.normalisation
        self._activation = _rounded(dictionary.activation, dtype)

    def __call__(self, x_BI: Tensor) -> tuple[Tensor, Tensor]:
        x_BI = x_BI.to(self._W_enc_ID)
        z_BI, inverse = self._normalisation(x_BI)
        if self._centre_I is not None:
            z_BI = z_BI - self._centre_I
        pre_BD = z_BI @ self._W_enc_ID + self._b_enc_D
        if self._scale_D is not None:
            pre_BD = pre_BD * self._scale_D
        acts_BD = self._activation(pre_BD)
        scaled_BD = acts_BD if self._scale_D is None else acts_BD / self._scale_D
        y_BO = scaled_BD @ self.W_dec_DO + self._b_dec_O
        if self._W_skip_IO is not None:
            y_BO = y_BO + x_BI @ self._W_skip_IO
        return acts_BD, inverse(y_BO)


def _rounded(activation: Activation, dtype: torch.dtype) -> Activation:
    if not is_dataclass(activation):
        return activation
    found = {each.name: getattr(activation, each.name) for each in fields(activation)}
    tensors = {name: each.to(dtype) for name, each in found.items() if isinstance(each, Tensor)}
    return replace(activation, **tensors)


def _batch_values(target_BO: Tensor, rebuilt_BO: Tensor) -> dict[str, float]:
    error_BO = rebuilt_BO - target_BO
    mean_square = error_BO.square().mean().item()
    variance = target_BO.var().item() if target_BO.numel() > 1 else math.nan
    return {
        "mse": mean_square,
        "mae": error_BO.abs().mean().item(),
        "fvu": mean_square / (variance + 1e-8),
        "cosine_similarity": F.cosine_similarity(
            rebuilt_BO.flatten(), target_BO.flatten(), dim=0
        ).item(),
    }


def _sparsity(counts_C: Tensor) -> dict[str, float | None]:
    """Mean, lower median and unbiased deviation of L0, of how many tokens have each."""
    n = int(counts_C.sum())
    l0_C = torch.arange(len(counts_C), dtype=torch.float64)
    mean = float((l0_C * counts_C).sum() / n)
    squares = float(((l0_C - mean) ** 2 * counts_C).sum())
    below_C = counts_C.cumsum(0)
    median = int(torch.searchsorted(below_C, (n - 1) // 2 + 1))
    return {
        "mean_l0": mean,
        "median_l0": float(median),
        "l0_std": math.sqrt(squares / (n - 1)) if n > 1 else None,
    }


def _defined(value: float) -> float | None:
    return value if math.isfinite(value) else None
