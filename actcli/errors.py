"""What can go wrong in a way that the user can mend.

    ActcliError                 exit status 1: one message, never a traceback
    ├── ModelError              a checkpoint is missing, damaged, or not of a known family
    ├── SamplesError            a data set or a selection of its rows cannot be used
    ├── CaptureError            a site cannot be captured from this model, or did not fire
    ├── DumpError               a dump is missing, damaged, or lacks what was asked for
    ├── DeviceError             the device asked for is not there
    ├── UsageError              exit status 2: the options contradict each other or the input
    └── CheckFailed             exit status 3: everything worked, and a requested check says no

A message says what was found, what was expected and what to do, in one or two sentences.
"""

import difflib
from collections.abc import Iterable


class ActcliError(Exception):
    """An expected failure: shown as one message, never as a traceback."""

    exit_code = 1


class ModelError(ActcliError):
    """A checkpoint is missing, damaged, or not of a known family."""


class SamplesError(ActcliError):
    """A data set or a selection of its rows cannot be used."""


class CaptureError(ActcliError):
    """A site cannot be captured from this model, or did not fire."""


class DumpError(ActcliError):
    """A dump is missing, damaged, or lacks what was asked for."""


class DeviceError(ActcliError):
    """The device asked for is not there."""


class UsageError(ActcliError):
    """The options contradict each other or the input."""

    exit_code = 2


class CheckFailed(ActcliError):
    """Everything worked, and a requested check says no."""

    exit_code = 3


_MOST_NAMES = 24


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a clause that ends a message: the nearest known name, or else what is known."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return "there are none"
    more = f", ... ({len(names)} in all)" if len(names) > _MOST_NAMES else ""
    return f"known are: {', '.join(names[:_MOST_NAMES])}{more}"


def reason(error: BaseException) -> str:
    """Return the first line of what a library said, or at least the name of its error."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
