"""What an environment's name stands for: a registered id, or a class or function in a module or a file."""

import difflib
import importlib
import pathlib
import re
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from rlplatform.envs.files import add_to_path, explained, load_file, loaded_files
from rlplatform.envs.third_party import register_all, register_for
from rlplatform.errors import UserError, nearest

Factory = Callable[..., Any]  # a class or function that makes a gymnasium.Env or a gymnasium.vector.VectorEnv


def find(text: str) -> EnvSpec | Factory:
    """What `text` names.

    Args:
        text: a registered id (`CartPole-v1`), one of a package that `third_party` knows (`ALE/Pong-v5`), `module:id`
            (the module registers it), `module:Name`, or `path/to/file.py:Name`, where Name is a class or a function
            that makes an environment.

    Raises:
        UserError: there is no such thing; the message names the nearest one.
    """
    if not text:
        raise UserError("no environment is given; give a registered id such as CartPole-v1, module:id, or file.py:Name")
    if text.startswith("<"):
        raise UserError(
            f"the environment {text} was passed as a Python callable that has no importable name; pass it again from "
            "Python, or put it into a file and name it as file.py:Name"
        )
    place, colon, name = text.rpartition(":")
    if not colon and text.endswith(".py"):
        place, name = text, ""
    register_for(name)
    if not place:
        return _registered(text)
    module = load_file(place) if place.endswith(".py") else _import(place)
    if name in gym.registry:
        return _registered(name)
    target: Any = module
    for part in name.split("."):
        target = getattr(target, part, None)
    if callable(target):
        return target  # type: ignore[no-any-return]
    names = _makers_in(module)
    raise UserError(
        f"{place} holds no class or function {name!r} and registers no such id; "
        + (nearest(name, names) if names else "it defines no environment class")
    )


def id_of(factory: Factory) -> str:
    """The text by which `factory` can be found again, for a configuration: `module:Name`.

    A callable that cannot be imported by name (a lambda, a function inside a function, anything of a notebook or of the
    script that is running) gives a text in angle brackets, which `find` refuses with a sentence that says what to do.
    """
    module, name = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if module is None or name is None:
        return f"<{type(factory).__name__}>"
    target: Any = sys.modules.get(module)
    for part in name.split("."):
        target = getattr(target, part, None)
    if module == "__main__" or target is not factory:
        return f"<{module}:{name.replace('<locals>.', '')}>".replace("<lambda>", "lambda")
    files = {file.name: file.path for file in loaded_files()}
    return f"{files.get(module, module)}:{name}"


def registered() -> list[str]:
    """The registered ids, sorted, with those of the packages of `third_party` that are installed."""
    register_all()
    return sorted(gym.registry)


def _registered(id: str) -> EnvSpec:
    spec = gym.registry.get(id)
    if spec is None:
        raise UserError(f"unknown environment {id!r}; {_nearest_id(id)}")
    return spec


def _nearest_id(id: str) -> str:
    """The end of the message for an unknown id: the newest version of the name that is nearest."""
    newest: dict[str, EnvSpec] = {}
    for known in registered():
        spec = gym.registry[known]
        name = known.removesuffix(f"-v{spec.version}").lower()
        if name not in newest or int(spec.version or 0) > int(newest[name].version or 0):
            newest[name] = spec
    close = difflib.get_close_matches(re.sub(r"-v\d+$", "", id.lower()), newest, n=1)
    if close:
        return f"did you mean {newest[close[0]].id!r}?"
    return "`rlplatform list envs` shows the registered ids; module:id imports the module that registers it first"


def _makers_in(module: ModuleType) -> list[str]:
    """The names of environment classes that `module` itself defines, else of all its own callables."""
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_")
    }
    classes = [
        name
        for name, value in own.items()
        if isinstance(value, type) and issubclass(value, gym.Env | gym.vector.VectorEnv)
    ]
    return classes or list(own)


def _import(module: str) -> ModuleType:
    """The module, which may also lie in the current folder, as it does for `python -m`."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = pathlib.Path.cwd()
        head = module.partition(".")[0]
        if error.name == head and ((here / f"{head}.py").exists() or (here / head).is_dir()):
            add_to_path(here)
            importlib.invalidate_caches()
            with explained(f"module {module!r}"):
                return importlib.import_module(module)
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(f"there is no module {module!r} to import; it must be installed or lie in {here}") from None
        with explained(f"module {module!r}"):
            raise
    except Exception:
        with explained(f"module {module!r}"):
            raise
