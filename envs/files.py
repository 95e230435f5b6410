"""Users' files as modules that stay in `sys.modules`, so that what they define can be pickled and found again."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

from rlplatform.errors import UserError


@dataclasses.dataclass(frozen=True)
class LoadedFile:
    """A user's file that stands in `sys.modules`: what unpickling its classes needs.

    Attributes:
        name: the module's name there, the same for the same file in every process.
        path: the file, absolute.
        given: the file as it was given, perhaps relative to the folder of that time.
        digest: of the file's content.
    """

    name: str
    path: str
    given: str
    digest: str


_files: dict[str, LoadedFile] = {}  # by module name
_folders: list[str] = []


def load_file(given: str, name: str | None = None) -> ModuleType:
    """Loads a Python file as a module that stays in `sys.modules`, so that its classes can be pickled.

    Its folder is put at the end of `sys.path`, for the files beside it. A file that has not changed is loaded once.

    Args:
        given: the file's path.
        name: the module's name; by default one that is the same for this file in every process.

    Raises:
        UserError: there is no such file, or it fails while loading.
    """
    path = pathlib.Path(given).expanduser().resolve()
    try:
        content = path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"the file {given} cannot be read from {pathlib.Path.cwd()}: {reason}") from None
    digest = hashlib.sha256(content).hexdigest()
    name = name or f"rlplatform_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if name in sys.modules and name in _files and _files[name].digest == digest:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    add_to_path(path.parent)
    previous = sys.modules.get(name)
    sys.modules[name] = module
    try:
        with explained(given):
            spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        if previous is not None:
            sys.modules[name] = previous
        raise
    _files[name] = LoadedFile(name, str(path), given, digest)
    return module


def loaded_files() -> list[LoadedFile]:
    """The files that `load_file` has loaded in this process."""
    return list(_files.values())


def add_to_path(folder: pathlib.Path) -> None:
    """Puts `folder` at the end of `sys.path`, where it hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    if str(folder) not in _folders:
        _folders.append(str(folder))


def added_folders() -> list[str]:
    """The folders that `add_to_path` has added in this process."""
    return list(_folders)


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what fails while a user's code is loaded into one sentence."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{what} fails while loading: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
