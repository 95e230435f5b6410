"""Environments as bytes: what a checkpoint needs to go on in the middle of an episode."""

import io
import pathlib
import pickle
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym

from rlplatform.envs.files import add_to_path, added_folders, load_file, loaded_files
from rlplatform.errors import RunError, UserError

_SCREENS = frozenset({"Surface", "Clock", "Font", "Window"})  # pygame's, made anew when the environment next renders


def snapshot(env: gym.vector.VectorEnv[Any, Any, Any]) -> bytes | None:
    """The environments in the middle of their episodes, or None where that is not possible.

    Possible: `SerialVectorEnv`, `SyncVectorEnv` and native vector environments whose state lives in Python and numpy,
    Gymnasium's classic control and toy text among them; `restore` then goes on exactly as the original would. An open
    window is left behind. Not possible: environments in other processes (AsyncVectorEnv), those that hold something
    that cannot be pickled, and those that pickle only their constructor's arguments (`gymnasium.utils.EzPickle`: Box2D,
    MuJoCo), which would come back as new ones. An environment that draws from a global random generator goes on, but
    with other draws.
    """
    if isinstance(env.unwrapped, gym.vector.AsyncVectorEnv):
        return None
    buffer = io.BytesIO()
    try:
        _Pickler(buffer).dump(env)
    except Exception:  # whatever a user's class raises when it is pickled
        return None
    files = [(file.name, file.path, file.given) for file in loaded_files()]
    return pickle.dumps({"folders": added_folders(), "files": files, "env": buffer.getvalue()})


def restore(data: bytes) -> gym.vector.VectorEnv[Any, Any, Any]:
    """The environments that `snapshot` saved. Like any pickle, `data` runs code: only restore what you saved yourself.

    Raises:
        RunError: the data or the code that it needs is not there any more or does not fit it.
    """
    try:
        tree = pickle.loads(data)
        for folder in map(pathlib.Path, tree["folders"]):
            add_to_path(folder if folder.is_dir() else pathlib.Path.cwd())
        for name, path, given in tree["files"]:
            _load(name, path, given)
        return pickle.loads(tree["env"])  # type: ignore[no-any-return]
    except Exception as error:
        raise RunError(f"the saved environments cannot be restored: {type(error).__name__}: {error}") from error


def _load(name: str, path: str, given: str) -> None:
    """Loads a user's file under its old name, from where it was or, if it has moved, from where it was named."""
    try:
        load_file(path, name)
    except UserError:
        load_file(given, name)


class _Pickler(cloudpickle.Pickler):
    """Leaves windows behind, and refuses what would come back as something new."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, gym.utils.EzPickle) and type(obj).__getstate__ is gym.utils.EzPickle.__getstate__:
            raise pickle.PicklingError(f"{type(obj).__name__} pickles only its constructor's arguments")
        if type(obj).__name__ in _SCREENS and type(obj).__module__.partition(".")[0] == "pygame":
            return type(None), ()
        return super().reducer_override(obj)
