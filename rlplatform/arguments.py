"""What every command's arguments are made of: the parser, its kinds of values, and the way to the API."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rlplatform.errors import UserError, nearest

Result = tuple[int, dict[str, Any], str]
"""A command's exit code, what it gives to a program, and what it says to a person."""


class Parser(argparse.ArgumentParser):
    """argparse, with the nearest valid choice in its errors, raised as `UserError`."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of printing the usage."""
        raise UserError(message)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.dest if isinstance(action, argparse._SubParsersAction) else argparse._get_action_name(action)
            raise UserError(f"unknown {name} {value!r}; {nearest(str(value), map(str, action.choices))}")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuses unknown options by the nearest known one."""
        known, unknown = self.parse_known_args(args, namespace)
        if unknown:
            options = getattr(known, "parser", self)._option_string_actions
            hint = (
                nearest(unknown[0].partition("=")[0], options) if unknown[0].startswith("-") else "it is one too many"
            )
            raise UserError(f"unknown argument {unknown[0]!r}; {hint}")
        return known


def add_command(commands: Any, name: str, run: Callable[[Any], Result], help: str, example: str) -> Parser:
    """A command's own parser, with the options that every command has."""
    parser: Parser = commands.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", epilog=f"example: {example}", allow_abbrev=False
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line of standard output")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run, parser=parser)
    return parser


def number(text: str) -> int:
    """A whole number that is not negative; underscores may stand between its digits."""
    try:
        value = int(text.replace("_", ""))
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, like 50000; got {text!r}") from None
    if value < 0:
        raise argparse.ArgumentTypeError(f"at least 0 is needed; got {text}")
    return value


def names(text: str) -> list[str]:
    """Names with commas between."""
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"names with commas between are needed, like dqn,qrdqn; got {text!r}")
    return found


def share(text: str) -> float:
    """A number; that it lies between 0 and 1 is looked at where it is used."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1 is needed, like 0.9; got {text!r}") from None


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = number(text)
    if value == 0:
        raise argparse.ArgumentTypeError("at least 1 is needed; got 0")
    return value


def load_api() -> Any:
    """`rlplatform.api`, with TensorFlow's own greetings on standard error left out."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    kept = os.dup(2)
    silent = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(silent, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()  # looks for a GPU now, and says so
    finally:
        os.dup2(kept, 2)
        os.close(silent)
        os.close(kept)
    from rlplatform import api

    return api
