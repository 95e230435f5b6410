"""Presets: the settings that are shipped, and the configuration of a new run that is made of them."""

import difflib
import fnmatch
import importlib.util
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rlplatform.config import Config, changed, merge, read_toml, to_dict
from rlplatform.errors import RunError, UserError, nearest

FALLBACK = "double"  # the preset of an environment that none names


def shipped() -> dict[str, dict[str, Any]]:
    """Every shipped preset by name: a partial tree, and `preset` with its `description`.

    `preset.environments` lists those that take it by default, `preset.extends` names the preset that it goes over, and
    `environments."ID"` is the partial tree of what is different for one environment, or for all whose ids a pattern
    like `"ALE/*"` matches.
    """
    agents = importlib.util.find_spec("rlplatform.agents")  # found, not imported: that would load TensorFlow
    if agents is None or not agents.submodule_search_locations:
        raise RunError("the presets are not installed: rlplatform.agents is missing; install rlplatform again")
    files = sorted(pathlib.Path(agents.submodule_search_locations[0], "presets").glob("*.toml"))
    return {file.stem: read_toml(file) for file in files}


def resolve(
    env_id: str,
    preset: str | None = None,
    overrides: Iterable[str] = (),
    **sections: Mapping[str, Any] | Any,
) -> Config:
    """The configuration of a new run: defaults, then the preset, then `sections`, then `key=value` overrides.

    Each goes over what came before; what it does not name stays, also inside a schedule: `exploration.epsilon.end=0.01`
    alone moves the end. A schedule that changes its kind keeps the parts that both kinds have. A preset that extends
    another goes over it, and what a preset holds for this environment goes over what it holds for all.

    Args:
        env_id: the environment; without a `preset`, the first preset that lists it is taken, else `double`.
        preset: a shipped preset's name, or the path of a TOML file.
        overrides: texts like `replay.capacity=100000`; values are TOML, and a bare word is a text.
        **sections: like `Config.replace`.

    Raises:
        UserError: an unknown preset or key, or a value of the wrong type or out of range.
    """
    known = shipped()
    if preset is None:
        suited = (name for name, tree in known.items() if env_id in tree.get("preset", {}).get("environments", ()))
        preset = next(suited, FALLBACK)
    if preset in known:
        chosen = known[preset]
    elif preset.endswith(".toml"):
        chosen = read_toml(pathlib.Path(preset))
    else:
        close = difflib.get_close_matches(preset, known, n=1, cutoff=0.5)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"unknown preset {preset!r} for {env_id}; {meant}presets: {', '.join(known)}")
    tree = to_dict(Config())
    for layer in _layers(chosen, known, env_id):
        merge(tree, layer)
    merge(tree, {"environment": {"id": env_id}})
    return changed(tree, overrides, sections)


def as_preset(config: Config, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A whole configuration as a preset: without the environment's id and the seed, which `train` is given."""
    tree = to_dict(config)
    del tree["seed"], tree["environment"]["id"]
    return ({"preset": dict(about)} if about else {}) | tree


def _layers(preset: Mapping[str, Any], known: Mapping[str, Any], env_id: str) -> list[dict[str, Any]]:
    """The partial trees that a preset is made of for one environment, the lowest first."""
    general: list[dict[str, Any]] = []
    special: list[dict[str, Any]] = []
    seen: set[str] = set()
    while True:
        tree = dict(preset)
        about = _section(tree.pop("preset", {}), "preset")
        own = _section(tree.pop("environments", {}), "environments")
        # The id itself goes over the patterns that match it.
        matching = sorted((name for name in own if fnmatch.fnmatchcase(env_id, name)), key=env_id.__eq__)
        general.insert(0, tree)
        special[:0] = [_section(own[name], f"environments.{name}") for name in matching]
        base = about.get("extends")
        if base is None:
            return [*general, *special]
        if not isinstance(base, str) or base not in known or base in seen:
            raise UserError(f"a preset cannot extend {base!r}; {nearest(str(base), known)}")
        seen.add(base)
        preset = known[base]


def _section(value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise UserError(f"{path} is a section and needs keys of its own; got {value!r}")
    return dict(value)
