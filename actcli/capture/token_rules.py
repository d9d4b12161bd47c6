"""Which tokens count when dictionaries are judged: padding never, the others by rules.

A position is the number of a token within its own sample, from 0, padding not counted. Rules look
at samples, positions and ids; the rule on lengths needs activations, see `token_stream_count`.

Axis letters: P places of a piece of the data, each a token or padding.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from actcli.errors import UsageError
from actcli.terminal.fields import IntRanges

_MOST_IDS = 12
_NUMBERED = re.compile(r"(.+)\.(-?[0-9]+)", re.ASCII)


class Places(NamedTuple):
    """Consecutive places of the data: by sample, then by position."""

    samples_P: NDArray[np.int64]
    positions_P: NDArray[np.int64]
    """Within the sample, from 0; anything at padding."""

    lengths_P: NDArray[np.int64]
    """Tokens of the sample that the place belongs to."""

    is_real_P: NDArray[np.bool_]
    """False at padding."""

    ids_P: NDArray[np.int64] | None
    """Token ids, anything at padding; None where they are not known."""


@dataclass(frozen=True)
class TokenRules:
    """What is left out, beside padding."""

    exclude_first: bool = False
    """Leave out tokens that begin a text: those with one of `bos_ids` wherever they stand (packed
    rows have them inside, too), where both these and the tokens' ids are known; else position 0."""

    bos_ids: tuple[int, ...] = ()
    """Ids that the tokenizer or the model begins a text with; () where they are not known."""

    exclude_tokens: tuple[int, ...] = ()
    """Ids to leave out."""

    exclude_positions: IntRanges | tuple[int, ...] = ()
    """Positions to leave out; negative ones count from each sample's own end."""

    max_norm_multiple: float | None = None
    """Leave out tokens whose input is longer than so many times the median length."""

    most_tokens: int | None = None
    """Stop when so many tokens have been counted."""

    def check(self) -> None:
        """Refuse rules that cannot be meant.

        Raises:
            UsageError: no tokens at all, a multiple that is not positive, or a range of positions
                that runs backwards.
        """
        if self.most_tokens is not None and self.most_tokens < 1:
            raise UsageError(f"{self.most_tokens} tokens were asked for, expected 1 or more")
        if self.max_norm_multiple is not None and not self.max_norm_multiple > 0:
            raise UsageError(
                f"--max-norm-multiple {self.max_norm_multiple:g}: expected a number above 0; "
                f"published evaluations take 10"
            )
        for first, last in self._position_ranges():
            if (first < 0) == (last < 0) and first > last:
                raise UsageError(
                    f"--exclude-positions {first}-{last} runs backwards; give the lower end first"
                )

    def check_known(self, *, ids_known: bool, has_samples: bool) -> None:
        """Refuse rules that nothing can be said of: they would leave out other tokens than meant.

        Args:
            ids_known: whether the tokens have ids.
            has_samples: whether it is known where a sample begins.

        Raises:
            UsageError: rules on positions, or on first tokens, of rows that have none.
        """
        if has_samples:
            return
        option = "--exclude-positions" if self._has_positions else None
        if self.exclude_first and not (ids_known and self.bos_ids):
            option = "--exclude-bos"
        if option is not None:
            raise UsageError(
                f"{option} needs to know where samples begin, and these are rows of tokens one "
                f"after another; expected activations (samples, tokens, d), or a mask or token_ids "
                f"(samples, tokens) beside them: dump texts, leave such rows out before, or leave "
                f"out very long tokens with --max-norm-multiple 10"
            )

    def keep(self, places: Places) -> NDArray[np.bool_]:
        """Return which places count (P,), as far as that can be told without activations.

        Raises:
            UsageError: ids are to be left out and are not known.
        """
        kept_P = places.is_real_P.copy()
        if self.exclude_first:
            kept_P &= ~self._begins_text(places)
        if self.exclude_tokens:
            kept_P &= ~np.isin(self._known_ids(places), self.exclude_tokens)
        for first, last in self._position_ranges():
            low_P, high_P = (
                np.where(end < 0, end + places.lengths_P, end) for end in (first, last)
            )
            kept_P &= (places.positions_P < low_P) | (places.positions_P > high_P)
        return kept_P

    def words(self, *, ids_known: bool, has_samples: bool = True) -> tuple[str, ...]:
        """Return the rules that can be stated beforehand, as a report says them."""
        said: list[str] = []
        if not has_samples:
            said.append("no samples are known: blocks of rows stand for them")
        if self.exclude_first:
            by_id = ids_known and self.bos_ids
            said.append(
                f"without tokens that begin a text ({_listed('id', self.bos_ids)})"
                if by_id
                else "without the first token of each sample"
            )
        if self.exclude_tokens:
            said.append(f"without tokens of {_listed('id', self.exclude_tokens)}")
        if self._has_positions:
            said.append(f"without positions {self._positions_in_words()}")
        if self.most_tokens is not None:
            said.append(f"at most {self.most_tokens} tokens")
        return tuple(said)

    def _begins_text(self, places: Places) -> NDArray[np.bool_]:
        if self.bos_ids and places.ids_P is not None:
            return np.isin(places.ids_P, self.bos_ids)
        begins_P: NDArray[np.bool_] = places.positions_P == 0
        return begins_P

    @staticmethod
    def _known_ids(places: Places) -> NDArray[np.int64]:
        if places.ids_P is None:
            raise UsageError(
                "--exclude-tokens needs the ids of the tokens, and there are none: dump texts, "
                "which keeps token_ids, or leave positions out with --exclude-positions"
            )
        return places.ids_P

    @property
    def _has_positions(self) -> bool:
        return next(self._position_ranges(), None) is not None

    def _position_ranges(self) -> Iterator[tuple[int, int]]:
        """Give first and last position of each range."""
        if isinstance(self.exclude_positions, IntRanges):
            for each in self.exclude_positions.ranges:
                yield each.first, each.last
        else:
            for position in self.exclude_positions:
                yield position, position

    def _positions_in_words(self) -> str:
        if isinstance(self.exclude_positions, IntRanges):
            return str(self.exclude_positions)
        return ",".join(map(str, self.exclude_positions))


def split_place(place: str) -> tuple[str, int | None]:
    """Split `mlp_input.4` into name and layer, which is None where no number stands at the end."""
    found = _NUMBERED.fullmatch(place)
    return (place, None) if found is None else (found[1], int(found[2]))


def _listed(noun: str, ids: tuple[int, ...]) -> str:
    more = f", ... ({len(ids)} in all)" if len(ids) > _MOST_IDS else ""
    plural = "s" if len(ids) > 1 else ""
    return f"{noun}{plural} {', '.join(map(str, ids[:_MOST_IDS]))}{more}"
