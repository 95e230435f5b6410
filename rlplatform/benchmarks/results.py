"""The file of a benchmark: written anew, whole or not at all, whenever something ends; the same command goes on."""

import copy
import json
import os
import pathlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import rlplatform
from rlplatform import config as configuration
from rlplatform.benchmarks import runs
from rlplatform.benchmarks.runs import matches
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.files import write_atomically
from rlplatform.machine import describe, versions

PACKAGES = ("tensorflow", "tf_keras", "gymnasium", "numpy", "ale-py", "minatar", "minigrid", "box2d")

Records = Mapping[str, list[dict[str, Any]]]


class Form(NamedTuple):
    """What the file of one benchmark looks like.

    Attributes:
        name: of the format.
        version: of the format.
        command: the benchmark that writes it.
        parts: what it holds beside that, empty, in order; `sessions`, `configurations` and `failed` are among it.
        records: those parts that are lists of what was measured, each with the key of its row.
    """

    name: str
    version: int
    command: str
    parts: Mapping[str, Any]
    records: tuple[str, ...]


class Row(Protocol):
    """What is measured with one configuration: an environment with a preset, for example."""

    @property
    def key(self) -> Mapping[str, Any]:
        """What its records have, and those of no other row."""

    @property
    def config(self) -> Config:
        """What its runs are trained from, that of seed 0."""

    @property
    def sha256(self) -> str:
        """By which records say what they were made from."""

    @property
    def words(self) -> str:
        """What a sentence calls it."""


def read(path: pathlib.Path, form: Form) -> dict[str, Any]:
    """A file's content.

    Raises:
        UserError: it is missing, or holds something else.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(tree, dict) or (tree.get("format"), tree.get("version")) != (form.name, form.version):
        raise UserError(f"{path} is no file of `rlplatform benchmark {form.command}`; choose another one")
    return tree


def read_or_begin(path: pathlib.Path, form: Form) -> dict[str, Any]:
    """A file's content, or that of an empty one where there is none.

    Raises:
        UserError: it holds something else.
    """
    if path.exists():
        return read(path, form)
    return {"format": form.name, "version": form.version, **copy.deepcopy(dict(form.parts))}


def write(path: pathlib.Path, tree: Mapping[str, Any]) -> None:
    """Writes the file whole or not at all, a line for each entry of its lists.

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


def make_room(
    tree: dict[str, Any],
    form: Form,
    planned: Iterable[Row],
    out: pathlib.Path,
    overwrite: bool,
    differs: Callable[[Mapping[str, Any], Records], str],
    **settings: Any,
) -> None:
    """Keeps one configuration for each row, and puts the planned ones in.

    Args:
        tree: the file's content.
        form: what it looks like.
        planned: the rows that are to be measured.
        out: the file's path, for the sentence.
        overwrite: replace rows that were made otherwise.
        differs: from a row's kept configuration and its records to what else is different, in words; empty if nothing.
        **settings: kept beside the configuration.

    Raises:
        UserError: a row was made otherwise, and may not be replaced.
    """
    for row in planned:
        kept = next((entry for entry in tree["configurations"] if matches(entry, row.key)), None)
        records = {name: [record for record in tree[name] if matches(record, row.key)] for name in form.records}
        if kept is not None:
            reason = changes(kept["config"], row.config) or differs(kept, records)
            if reason and any(records.values()) and not overwrite:
                raise UserError(
                    f"{out} holds runs of {row.words} that were made otherwise ({reason}); choose another "
                    "--out, or replace them by --overwrite"
                )
            if not reason:
                continue
            for name in (*form.records, "configurations"):
                tree[name] = [entry for entry in tree[name] if not matches(entry, row.key)]
        about = {**row.key, "sha256": row.sha256, **settings}
        tree["configurations"].append(about | {"config": configuration.to_toml(row.config)})


def changes(saved: str, config: Config) -> str:
    """What differs between the configuration of a row that is there and a planned one, in words; empty if nothing."""
    try:
        before = configuration.from_dict(tomllib.loads(saved))
    except (UserError, tomllib.TOMLDecodeError):
        return "by another version"
    keys = runs.differences(before, config)
    return f"{', '.join(keys[:4])} would change" if keys else ""


def configuration_of(tree: Mapping[str, Any], key: Mapping[str, Any]) -> str:
    """The SHA-256 of the configuration that the row with this key has in the file."""
    return str(next(entry["sha256"] for entry in tree["configurations"] if matches(entry, key)))


def session(tree: dict[str, Any], command: str) -> int:
    """The number of this session in the file: records name theirs, since they need not all be of one."""
    used = {"rlplatform": rlplatform.__version__} | versions(PACKAGES)
    entry = {"command": command, "versions": used, "machine": describe() | {"cores": _cores()}}
    if entry not in tree["sessions"]:
        tree["sessions"].append(entry)
    return int(tree["sessions"].index(entry))


def fail(tree: dict[str, Any], key: Mapping[str, Any], session: int, error: str) -> str:
    """Keeps what has failed, to be tried again by the next call, and gives its sentence in one line."""
    sentence = " ".join(error.split())
    tree["failed"].append({**key, "session": session, "error": sentence})
    return sentence


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
