"""The two ways in which a command ends badly, each with one sentence for the user, and the end of such a sentence."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """What was asked for cannot be done as asked; the message says what would be right (exit code 2)."""


class RunError(RuntimeError):
    """Something failed while running: a run, a file or a gate; the message says what and what is safe (exit code 1)."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message: the choice nearest to `name`, or all of them when none is near."""
    choices = list(choices)
    for match in difflib.get_close_matches(name, choices, n=1, cutoff=0.5):
        return f"did you mean {match!r}?"
    return "choices: " + ", ".join(choices[:30])
