"""Files that stay whole: written beside, synced, renamed; folders that one process holds; why a write has failed."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from rlplatform.errors import RunError, UserError

PARTIAL = ".partial-"  # the names of what is not yet whole begin so


def write_atomically(path: pathlib.Path, data: bytes | str) -> None:
    """Writes a small file so that it is always whole: the old one or the new one. Texts are written as UTF-8.

    Raises:
        RunError: the disk is full, the folder is read-only or gone; the old file is as it was.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}-{os.getpid()}")
    try:
        with synced(partial) as file:
            file.write(data.encode() if isinstance(data, str) else data)
        partial.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise failure(error, path.name, path.parent, f"{path.name} is as it was before") from error
        raise


def failure(error: OSError, what: str, folder: pathlib.Path, safe: str) -> RunError:
    """The sentence for a file that could not be written: why, what, where, and what is safe."""
    place = folder if os.path.isdir(folder) else folder.parent
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"the disk of {place} is full"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason = f"{place} is read-only here"
    elif error.errno in (errno.ENOENT, errno.ESTALE):
        reason = f"{folder if os.path.exists(folder.parent) else folder.parent} is gone"
    elif error.errno in (errno.ENOTDIR, errno.EEXIST) and place != folder:
        reason = f"{folder if os.path.exists(folder) else place} is not a folder"
    else:
        reason = f"{error.strerror or error} in {place}"
    return RunError(f"{reason}, so {what} could not be written; {safe}")


@contextlib.contextmanager
def synced(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A new file that is on the disk, not only in the system's cache, when the block ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: pathlib.Path) -> None:
    """Makes sure that the names in a folder are on the disk."""
    if os.name == "nt":  # there a folder cannot be opened, and a rename is synced by the file system
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(folder: pathlib.Path) -> Iterator[None]:
    """Makes a folder and holds it, so that no second process works there.

    Raises:
        UserError: another process holds it.
        RunError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise failure(error, ".lock", folder, "nothing was changed") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another process works on {folder}; wait for it, or choose another --out") from None
        try:
            yield
        finally:
            _leave(folder)
    finally:
        os.close(descriptor)


def _leave(folder: pathlib.Path) -> None:
    """Takes the folder away again if nothing has come into it."""
    with contextlib.suppress(OSError):
        if os.listdir(folder) == [".lock"]:
            (folder / ".lock").unlink()
            folder.rmdir()
