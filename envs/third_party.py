"""Environments of other packages: which package registers an id, and which extra installs it."""

import dataclasses
import functools
import importlib
import importlib.util
import re
import warnings

import gymnasium as gym

from rlplatform.errors import UserError


@dataclasses.dataclass(frozen=True)
class Package:
    """A package whose environments can be named once it is installed.

    Attributes:
        pattern: what its ids begin with, a regular expression.
        module: what is imported for them.
        extra: the extra of this project that installs it.
        register: the module's function that registers the ids; None where importing it does.
    """

    pattern: str
    module: str
    extra: str
    register: str | None = None


PACKAGES = (
    Package(r"ALE/|\w+NoFrameskip-v", "ale_py", "atari"),
    Package(r"MinAtar/", "minatar.gym", "minatar", register="register_envs"),
    Package(r"MiniGrid-|BabyAI-", "minigrid", "minigrid"),
)
EXTRAS_OF_GYMNASIUM = {"gymnasium.envs.box2d": "box2d"}


def register_for(id: str) -> None:
    """Imports the package that registers `id`, where its name tells which.

    Raises:
        UserError: the package is not installed; the message names the extra.
    """
    for package in PACKAGES:
        if id not in gym.registry and re.match(package.pattern, id):
            if not _installed(package):
                raise UserError(f"{id} needs a package that is not installed: {remedy(package.extra)}")
            _register(package)


def register_all() -> None:
    """Registers the ids of every package that is installed."""
    for package in PACKAGES:
        if _installed(package):
            _register(package)


def extra_for(entry_point: object) -> str | None:
    """The extra that installs what one of Gymnasium's own environments needs, by its entry point."""
    return next((extra for place, extra in EXTRAS_OF_GYMNASIUM.items() if str(entry_point).startswith(place)), None)


def remedy(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'rlplatform[{extra}]'"


def _installed(package: Package) -> bool:
    return importlib.util.find_spec(package.module.partition(".")[0]) is not None


@functools.cache
def _register(package: Package) -> None:
    before = dict(gym.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package about itself: nobody here can act on it
        module = importlib.import_module(package.module)
        if package.register is not None:
            getattr(module, package.register)()
    gym.registry.update(before)  # an id that was registered already keeps its meaning
