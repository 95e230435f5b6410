"""What makes an environment: which arguments it takes, and what went wrong when it failed, in one sentence."""

import contextlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import load_env_creator

from rlplatform.envs.third_party import extra_for, remedy
from rlplatform.errors import UserError, nearest

_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def loaded(entry_point: Any) -> Any:
    """The callable behind a registered entry point, which is text like `module:Name` or the callable itself."""
    return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point


def parameters(target: Any) -> set[str]:
    """The names that `target` takes by keyword; `**` is among them if it takes any."""
    try:
        found = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a builtin
        return {"**"}
    names = {parameter.name for parameter in found if parameter.kind in _BY_KEYWORD}
    return names | {"**"} if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found) else names


@contextlib.contextmanager
def explained(name: str, entry_point: Any, kwargs: dict[str, Any]) -> Iterator[None]:
    """Turns what fails while an environment is made into one sentence.

    Args:
        name: what the user calls the environment.
        entry_point: what makes it.
        kwargs: what it is made with.
    """
    try:
        yield
    except UserError:
        raise
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        raise UserError(f"{name} needs a package that is not installed: {_remedy(error, entry_point)}") from error
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            takes = sorted(parameters(loaded(entry_point)) - {"**"})
            unknown = next((key for key in kwargs if key not in takes), "")
            raise UserError(f"{name} takes no argument {unknown!r}; {nearest(unknown, takes)}") from error
        made = f"with {kwargs} " if kwargs else ""
        raise UserError(f"{name} cannot be made {made}({type(error).__name__}: {_line(error)})") from error


def _remedy(error: Exception, entry_point: Any) -> str:
    """The command for our extra, else the one that the error's message names, else the one for the missing module."""
    extra = extra_for(entry_point)
    if extra is not None:
        return remedy(extra)
    commands = re.findall(r"pip install [^`]+", str(error))
    if commands:
        return " && ".join(commands)
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"pip install {error.name.partition('.')[0]}"
    return _line(error)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
