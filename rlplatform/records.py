"""Files of raw results: many runs in one JSON file, a line each, that the same command goes on with later."""

import hashlib
import json
import math
import os
import pathlib
import tomllib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import rlplatform
from rlplatform import config as configuration
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.files import write_atomically
from rlplatform.machine import describe, versions

VERSION = 1
PACKAGES = ("tensorflow", "tf_keras", "gymnasium", "numpy", "ale-py", "minatar", "minigrid", "box2d")
# What a run may differ in and still be another seed of the same row: it is not what is learned.
APART = ("seed", "device", "threads", "checkpoint.", "logging.", "evaluation.video")


def read(path: pathlib.Path, kind: str) -> dict[str, Any]:
    """A file of results.

    Args:
        path: where it is.
        kind: `returns` or `transfer`, the benchmark that wrote it.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (f"rlplatform-{kind}", VERSION):
        raise UserError(f"{path} is no file of `rlplatform benchmark {kind}`; choose another one")
    return tree


def write(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all, a line for each run.

    Raises:
        RunError: the disk is full, or the folder is read-only; the old file is as it was.
    """
    parts = []
    for key, value in tree.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"  {json.dumps(item, ensure_ascii=False)}" for item in value)
            parts.append(f" {json.dumps(key)}: [\n{lines}\n ]")
        else:
            parts.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "{\n" + ",\n".join(parts) + "\n}\n")


def empty(kind: str, **parts: Any) -> dict[str, Any]:
    """The content of a new file: its sessions, the parts that are its own, its runs and those that have failed."""
    return {"format": f"rlplatform-{kind}", "version": VERSION, "sessions": []} | parts | {"runs": [], "failed": []}


def add_session(tree: dict[str, Any], command: str) -> int:
    """The number of this session in the file: runs name theirs, since they need not all be of one."""
    used = {"rlplatform": rlplatform.__version__} | versions(PACKAGES)
    session = {"command": command, "versions": used, "machine": describe() | {"cores": _cores()}}
    if session not in tree["sessions"]:
        tree["sessions"].append(session)
    return int(tree["sessions"].index(session))


def make_room(
    tree: dict[str, Any],
    part: str,
    row: Mapping[str, Any],
    keys: Sequence[str],
    otherwise: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], str],
    refusal: str,
    overwrite: bool,
) -> None:
    """Puts what a row is made from into a part of the file, where it is not there yet.

    Args:
        tree: the file's content.
        part: the list of rows.
        row: the new one.
        keys: the fields by which it and its runs are found.
        otherwise: from the row that is there and its runs to the reason why they would now be other ones, or "".
        refusal: the sentence where they would, with a place for the `reason`.
        overwrite: take the old row and its runs out instead.

    Raises:
        UserError: the row has runs that were made otherwise, and they are not to be replaced.
    """
    kept = next((it for it in tree[part] if all(it[key] == row[key] for key in keys)), None)
    runs = [run for run in tree["runs"] if all(run[key] == row[key] for key in keys)]
    if kept is not None:
        reason = otherwise(kept, runs)
        if reason and runs and not overwrite:
            raise UserError(refusal.format(reason=reason))
        if not reason:
            return
        tree[part].remove(kept)
        tree["runs"] = [run for run in tree["runs"] if run not in runs]
    tree[part].append(dict(row))


def changes(saved: str, config: Config) -> str:
    """What differs between the saved configuration of a row and a planned one, in words; empty if nothing."""
    try:
        before = configuration.from_dict(tomllib.loads(saved))
    except (UserError, tomllib.TOMLDecodeError):
        return "by another version"
    keys = [key for key in configuration.differences(before, config) if not key.startswith(APART)]
    return f"{', '.join(keys[:4])} would change" if keys else ""


def digest(config: Config) -> str:
    """The SHA-256 of a configuration."""
    return hashlib.sha256(configuration.to_toml(config).encode()).hexdigest()


def compact(value: float) -> float:
    """A return as it is kept: whole numbers exactly, others to five significant digits."""
    value = float(value)
    if not math.isfinite(value):
        raise RunError(f"an episode's return is {value}; a mean needs numbers")
    return int(value) if value.is_integer() else float(f"{value:.5g}")


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
