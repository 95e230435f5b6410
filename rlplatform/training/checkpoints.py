"""Checkpoints that a stopped run goes on from: written beside, synced, renamed; verified before they are read."""

import contextlib
import hashlib
import json
import os
import pathlib
import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rlplatform.errors import RunError
from rlplatform.files import PARTIAL, failure, sync_folder, synced

FORMAT = 1
_NAME = re.compile(r"step_(\d{9,})(?:-(\d+))?")
_VARIABLES, _HOST, _MANIFEST = "variables.npy", "host.pkl", "manifest.json"


class Saved(NamedTuple):
    """What `Checkpoints.restore` found."""

    step: int
    variables: dict[str, np.ndarray]
    host: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run, one folder each: `step_000012345/`.

    Each holds `variables.npy` (the arrays one after another, each as `numpy.save` writes it), `host.pkl` (a pickle of
    small Python state) and `manifest.json` (step, format, the arrays' names, sizes and SHA-256 sums). A run folder is
    trusted input: unpickling runs code. The pickle is read only after its sum has matched, which guards against damage,
    not against malice.

    Opening and restoring change nothing on the disk, so that a run may be read while it is being written.

    Args:
        folder: where they lie. The first `save` makes it; its parent must be there.
        keep: how many of the newest are kept, at least 1.
    """

    def __init__(self, folder: pathlib.Path, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1; got {keep}")
        self._folder = pathlib.Path(folder)
        self._keep = keep

    def save(self, step: int, variables: Mapping[str, np.ndarray], host: Mapping[str, Any]) -> pathlib.Path:
        """Writes one checkpoint; it counts from the moment of its rename, and only then are older ones deleted.

        The partial folders that a killed run has left are deleted first. A second save of one step gets a name of its
        own (`step_000012345-1`), so that there is no moment without a complete checkpoint; those of later steps, which
        a run that went on from here has left behind, are deleted with the old ones.

        Args:
            step: env steps done.
            variables: arrays of bool, integer, float or complex numbers. Each is written in pieces, never copied whole.
            host: anything that pickles, and small.

        Returns:
            The new checkpoint's folder.

        Raises:
            RunError: the disk is full, the folder is read-only or gone; what was there before is as it was.
            TypeError: an array of another type.
        """
        partial = self._folder / f"{PARTIAL}step_{step:09d}-{os.getpid()}"
        try:
            self._folder.mkdir(exist_ok=True)
            self._sweep()
            partial.mkdir()
            _write(partial, step, variables, host)
            final = self._new_name(step)
            partial.rename(final)
            sync_folder(self._folder)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError):
                raise failure(error, f"the checkpoint of step {step}", self._folder, self._safe()) from error
            raise
        self._delete_old(final)
        return final

    def restore(self, prefix: str = "") -> Saved | None:
        """The newest checkpoint that verifies, or None where there are none.

        Args:
            prefix: only arrays whose names begin so are kept in memory.

        Warns:
            UserWarning: one sentence, where newer ones are broken and were passed over.

        Raises:
            RunError: there are checkpoints and none verifies, or their folder cannot be read.
        """
        broken: list[str] = []
        try:
            found = self._all()
        except OSError as error:
            raise RunError(f"{self._folder} cannot be read: {error.strerror}") from error
        for path in reversed(found):
            try:
                saved = _read(path, prefix)
            except _Broken as reason:
                broken.append(f"{path.name} ({reason})")
                continue
            if broken:
                warnings.warn(f"skipped {', '.join(broken)} in {self._folder} and took {path.name}", stacklevel=2)
            return saved
        if broken:
            raise RunError(f"no checkpoint in {self._folder} is complete: {', '.join(broken)}; start the run anew")
        return None

    def _all(self) -> list[pathlib.Path]:
        """The checkpoints' folders, oldest first."""
        if not self._folder.exists():
            return []
        return sorted((path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), key=_order)

    def _new_name(self, step: int) -> pathlib.Path:
        taken = [_order(path)[1] for path in self._all() if _order(path)[0] == step]
        return self._folder / (f"step_{step:09d}-{max(taken) + 1}" if taken else f"step_{step:09d}")

    def _safe(self) -> str:
        """What an error says of the checkpoints that are still there."""
        with contextlib.suppress(OSError):
            for path in reversed(self._all()):
                with contextlib.suppress(_Broken):
                    _manifest(path)
                    return f"the newest complete checkpoint is still step {_order(path)[0]}"
        return "there is no complete checkpoint"

    def _sweep(self) -> None:
        for path in self._folder.glob(f"{PARTIAL}*"):
            shutil.rmtree(path, ignore_errors=True)

    def _delete_old(self, newest: pathlib.Path) -> None:
        """Deletes all but `newest` and the kept ones before it. What cannot be deleted waits for the next save."""
        with contextlib.suppress(OSError):
            found = self._all()
            older = [path for path in found if _order(path)[0] < _order(newest)[0]]
            kept = {newest, *older[max(0, len(older) - self._keep + 1) :]}
            for path in found:
                if path not in kept:  # renamed first: a kill in between leaves no half checkpoint under a good name
                    path.rename(path.with_name(PARTIAL + path.name))
            self._sweep()


# --- one checkpoint's folder ----------------------------------------------------------------------------------------


class _Broken(Exception):
    """Why a checkpoint does not verify."""


class _Counted:
    """A file that knows the size and the SHA-256 sum of what went through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._size = 0

    def write(self, data: Any, /) -> int:
        self._sum.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def entry(self) -> dict[str, Any]:
        return {"bytes": self._size, "sha256": self._sum.hexdigest()}


def _write(folder: pathlib.Path, step: int, variables: Mapping[str, np.ndarray], host: Mapping[str, Any]) -> None:
    manifest: dict[str, Any] = {"format": FORMAT, "step": step, "variables": list(variables), "files": {}}
    with synced(folder / _VARIABLES) as file:
        counted = _Counted(file)
        for name, array in variables.items():
            array = np.asarray(array)
            if array.dtype.kind not in "biufc":
                raise TypeError(f"variable {name!r} is of {array.dtype}, which no checkpoint can hold")
            np.lib.format.write_array(counted, array, allow_pickle=False)
        manifest["files"][_VARIABLES] = counted.entry()
    with synced(folder / _HOST) as file:
        counted = _Counted(file)
        pickle.dump(dict(host), counted, protocol=pickle.HIGHEST_PROTOCOL)
        manifest["files"][_HOST] = counted.entry()
    with synced(folder / _MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1).encode())
    sync_folder(folder)


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    """The manifest, where the files have the sizes that it names."""
    try:
        manifest: dict[str, Any] = json.loads((path / _MANIFEST).read_bytes())
        if manifest["format"] != FORMAT:
            raise _Broken(f"format {manifest['format']}, this version reads {FORMAT}")
        if manifest["step"] != _order(path)[0]:
            raise _Broken(f"its manifest is that of step {manifest['step']}")
        for name in (_VARIABLES, _HOST):
            size, expected = (path / name).stat().st_size, manifest["files"][name]["bytes"]
            if size != expected:
                raise _Broken(f"{name} has {size} bytes instead of {expected}")
    except OSError as error:
        missing = pathlib.Path(error.filename).name if error.filename else "a file"
        raise _Broken(f"{missing}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _Broken(f"{_MANIFEST} is damaged") from error
    return manifest


def _read(path: pathlib.Path, prefix: str) -> Saved:
    manifest = _manifest(path)
    try:
        with open(path / _VARIABLES, "rb") as variables, open(path / _HOST, "rb") as host:
            for name, file in ((_VARIABLES, variables), (_HOST, host)):
                if hashlib.file_digest(file, "sha256").hexdigest() != manifest["files"][name]["sha256"]:
                    raise _Broken(f"{name} is damaged")
                file.seek(0)
            arrays = {}
            for name in manifest["variables"]:
                array = np.load(variables, allow_pickle=False)
                if name.startswith(prefix):
                    arrays[name] = array
            try:
                return Saved(manifest["step"], arrays, pickle.load(host))
            except Exception as error:  # a class that this version no longer has, and whatever else unpickling runs
                raise _Broken(f"{_HOST} does not unpickle: {error}") from error
    except OSError as error:
        raise _Broken(f"cannot be read: {error.strerror}") from error


def _order(path: pathlib.Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1]), int(match[2] or 0)
