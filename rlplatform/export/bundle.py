"""The bundle on the disk: written beside, sealed with hashes, synced, renamed; and read back whole."""

import contextlib
import gzip
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from rlplatform.compression import open_bundle
from rlplatform.errors import UserError
from rlplatform.files import failure
from rlplatform.runtime import FORMAT, FORMAT_VERSION, MANIFEST, digest

read = open_bundle

_UNSEALED = "0" * 64


@contextlib.contextmanager
def draft(out: pathlib.Path, overwrite: bool) -> Iterator[pathlib.Path]:
    """A new folder beside `out` to write a bundle into; when the block ends without an error, it becomes `out`.

    Args:
        out: where the bundle is to be.
        overwrite: whether a bundle that is there already may be replaced. Anything else that is there stays.

    Raises:
        UserError: something is there that may not be replaced.
        RunError: the disk is full or the folder cannot be written; what was there before is as it was.
    """
    check(out, overwrite)
    place = out.resolve()
    partial = place.parent / f".{place.name}.partial-{os.getpid()}"
    try:
        with writing(out):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        yield partial
        check(out, overwrite)  # Minutes have passed.
        with writing(out):
            _sync(partial)
            _replace(place, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def writing(out: pathlib.Path) -> Iterator[None]:
    """Turns what the operating system refuses into one sentence.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise failure(error, "the bundle", out, "what was there before is as it was") from error


def check(out: pathlib.Path, overwrite: bool) -> None:
    """Whether a bundle may be written to `out`.

    Raises:
        UserError: it may not.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; a bundle is a folder: choose another one")
    if (out / MANIFEST).is_file():
        if not overwrite:
            raise UserError(f"{out} holds a bundle already; overwrite it with --overwrite, or choose another folder")
    elif any(out.iterdir()):
        raise UserError(f"{out} is not empty and is no bundle, so it stays as it is; choose another folder")


def seal(folder: pathlib.Path, manifest: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `policy.json` over all files that lie in the folder: their hashes and sizes, and its own hash.

    Args:
        folder: the bundle.
        manifest: what else is to be said.
        details: by file, what is to be said beside its hash and sizes.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != MANIFEST:
            content = path.read_bytes()
            files[name] = {
                "sha256": hashlib.sha256(content).hexdigest(),
                "bytes": len(content),
                "gzip_bytes": len(gzip.compress(content, 9, mtime=0)),
                **details.get(name, {}),
            }
    head = {"format": FORMAT, "version": FORMAT_VERSION, "sha256": _UNSEALED}
    text = json.dumps({**head, **manifest, "files": files}, indent=1, default=str) + "\n"
    (folder / MANIFEST).write_text(text.replace(_UNSEALED, digest(text, _UNSEALED), 1), encoding="utf-8")


def _sync(folder: pathlib.Path) -> None:
    """Makes sure that all that was written is on the disk before the folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(out: pathlib.Path, partial: pathlib.Path) -> None:
    """Gives `partial` the name `out`; a bundle that was there is deleted after that, and is back if it fails."""
    old = out.parent / f".{out.name}.old-{os.getpid()}"
    moved = (out / MANIFEST).is_file()
    if moved:
        out.rename(old)
    try:
        partial.rename(out)
    except OSError:
        if moved:
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
