"""`sae-eval --view` and `--browse`: activation samples in the terminal."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from actcli.errors import UsageError
from actcli.terminal.console import Output

if TYPE_CHECKING:
    from actcli.render.feature_files import SamplesFolder
    from actcli.reports.feature_samples import FeatureLine, FeatureRecord

Ask = Callable[[str], str]

_QUESTION = "feature number, list, text to search, or q: "
_LIST, _QUIT = ("list", "l"), ("q", "quit", "exit")


def terminal_ask(*, json_output: bool) -> Ask | None:
    """Return what asks a person at the terminal; None where none sits there, or with `--json`."""
    sits = sys.stdin.isatty() and sys.stdout.isatty()
    return input if sits and not json_output else None


def view_samples(
    folder: Path,
    *,
    output: Output,
    features: Sequence[int] = (),
    find: str | None = None,
    n_samples: int = 10,
    ask: Ask | None = None,
) -> None:
    """Show features of a folder of samples: those asked for, those found, or a list to choose from.

    With neither `features` nor `find` the features with the largest activations are listed; where
    there is someone to `ask`, questions follow: numbers, `list`, a text to search, `q`.

    Args:
        folder: samples of this program or of the Matryoshka program; or a run that holds them.
        output: where they are shown.
        features: their numbers.
        find: list the features whose contexts have this text, in whatever case.
        n_samples: contexts shown of each feature.
        ask: what asks a question, such as `terminal_ask` gives; None to ask nothing.

    Raises:
        SamplesError: there are no samples, or they are damaged.
        UsageError: the folder does not have a feature, or both features and a text are given.
    """
    from actcli.render.feature_files import open_folder

    if features and find is not None:
        raise UsageError("features are given by number, and a text to find: give one of them")
    view = _View(open_folder(folder), output, n_samples)
    if features:
        view.show(features)
        return
    view.list(find)
    if ask is not None and find is None:
        while view.answer(_next_word(ask)):
            continue


def _next_word(ask: Ask) -> str:
    try:
        return ask(_QUESTION).strip()
    except EOFError:
        return _QUIT[0]


@dataclass(frozen=True)
class _View:
    """A folder of samples, and how it is shown."""

    samples: "SamplesFolder"
    output: Output
    n_samples: int

    def answer(self, word: str) -> bool:
        """Do what was said; False if that is to stop."""
        if word.lower() in _QUIT:
            return False
        numbers = word.replace(",", " ").split()
        try:
            if word.lower() in _LIST:
                self.list(None)
            elif numbers and all(each.isascii() and each.isdigit() for each in numbers):
                self.show(list(map(int, numbers)))
            elif word:
                self.list(word)
        except UsageError as error:  # a feature that is not there: ask again
            self.output.warn(str(error))
        return True

    def show(self, features: Sequence[int]) -> None:
        from actcli.render.feature_text import view_tables
        from actcli.reports.feature_samples import FeatureView

        unique = dict.fromkeys(features)
        records = tuple(self.samples.several(list(unique)))
        view = FeatureView(folder=str(self.samples.path), features=records)
        self.output.print_report(view, partial(view_tables, n_samples=self.n_samples))

    def list(self, find: str | None) -> None:
        from actcli.render.feature_text import list_tables
        from actcli.reports.feature_samples import FeatureList

        lines = [_line(record, find) for record in self.samples.every()]
        if find is not None:
            found = [line for line in lines if line.n_found]
            lines = sorted(found, key=lambda line: -(line.n_found or 0))
        listed = FeatureList(
            folder=str(self.samples.path),
            find=find,
            n_features=len(self.samples.files),
            features=tuple(lines),
        )
        self.output.print_report(listed, list_tables)


def _line(record: "FeatureRecord", find: str | None) -> "FeatureLine":
    from actcli.reports.feature_samples import FeatureLine

    numbers = record.statistics
    return FeatureLine(
        feature_idx=record.feature,
        max_activation=numbers.max_activation,
        mean_activation=numbers.mean_activation,
        activation_count=numbers.activation_count,
        density=numbers.density,
        text=record.top_samples[0].text if record.top_samples else "",
        n_found=None if find is None else _n_found(record, find.casefold()),
    )


def _n_found(record: "FeatureRecord", folded: str) -> int:
    texts = (f"{each.context_text}\n{each.text}" for each in record.top_samples)
    return sum(folded in text.casefold() for text in texts)
