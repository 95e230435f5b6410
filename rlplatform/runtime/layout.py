"""An observation of several entries, as an environment gives it, to the one array that the network sees."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .errors import ObservationError

Array = np.ndarray[Any, Any]


class Layout:
    """The `layout` of a manifest, applied to one observation.

    Numbers are taken as they are, whole numbers of Discrete and MultiDiscrete spaces become one-hots, and images with
    channels first get them last.

    Args:
        described: what the manifest says: its `entries`, whether they are joined into a `flat` vector, and where among
            them the `action_mask` stands.
        frame_shape: of the array, `[F...]`.
    """

    def __init__(self, described: Mapping[str, Any], frame_shape: tuple[int, ...]) -> None:
        self._flat: bool = described["flat"]
        self._entries: list[dict[str, Any]] = described["entries"]
        self._mask_path: list[Any] | None = described["action_mask"]
        self._frame_shape = frame_shape
        tops = [entry["path"][0] for entry in self._entries if entry["path"]]
        self._container: type | None = None if not tops else tuple if isinstance(tops[0], int) else dict

    def fits(self, observation: Any) -> bool:
        """Whether it has the environment's own form, rather than that of the array."""
        if self._container is not None:
            return isinstance(observation, self._container)
        if isinstance(observation, dict):
            return False
        try:
            shape = np.shape(observation)
        except ValueError:
            return False
        return bool(shape == tuple(self._entries[0]["shape"]) and shape != self._frame_shape)

    def array(self, observation: Any) -> Array:
        """The array `[F...]` of an observation that `fits`.

        Raises:
            ObservationError: an entry is missing, or is not in its space.
        """
        if not self._flat:
            value = _numbers(self._entries[0], _at(observation, self._entries[0]["path"]))
            return value.transpose(self._entries[0]["axes"]) if "axes" in self._entries[0] else value
        vector = np.zeros(self._frame_shape, np.float32)
        for entry in self._entries:
            value, start = _at(observation, entry["path"]), entry["offset"]
            if "sizes" in entry:
                for size, position in zip(entry["sizes"], _positions(entry, value), strict=True):
                    vector[start + position] = 1.0
                    start += size
            else:
                with np.errstate(over="ignore"):  # Too great for float32 becomes infinite, which is refused.
                    vector[start : start + entry["length"]] = _numbers(entry, value).reshape(-1)
        return vector

    def mask(self, observation: Any) -> Any:
        """The entry that says which actions are allowed; None where there is none."""
        if self._mask_path is None or not self.fits(observation):
            return None
        return _at(observation, self._mask_path)


def _at(observation: Any, path: list[Any]) -> Any:
    for depth, key in enumerate(path):
        try:
            observation = observation[key]
        except (KeyError, IndexError, TypeError):
            raise ObservationError(f"an observation must have an entry {_place(path[: depth + 1])}") from None
    return observation


def _numbers(entry: dict[str, Any], value: Any) -> Array:
    try:
        array = np.asarray(value)
    except ValueError:
        raise ObservationError(f"{_name(entry)} must be one array; got sequences of unequal lengths") from None
    if list(array.shape) != entry["shape"]:
        raise ObservationError(f"{_name(entry)} must have shape {entry['shape']}; got {list(array.shape)}")
    if array.dtype.kind not in "fiub":
        raise ObservationError(f"{_name(entry)} must hold numbers; got {array.dtype}")
    return array


def _positions(entry: dict[str, Any], value: Any) -> list[int]:
    """Where in its one-hot each whole number stands."""
    array = _numbers(entry, value)
    if array.dtype.kind not in "iu":
        raise ObservationError(f"{_name(entry)} must hold whole numbers; got {array.dtype}")
    positions = []
    for number, size, start in zip(array.reshape(-1).tolist(), entry["sizes"], entry["start"], strict=True):
        if not 0 <= number - start < size:
            raise ObservationError(f"{_name(entry)} must lie between {start} and {start + size - 1}; got {number}")
        positions.append(number - start)
    return positions


def _name(entry: dict[str, Any]) -> str:
    return f"an observation's entry {_place(entry['path'])}" if entry["path"] else "an observation"


def _place(path: list[Any]) -> str:
    return repr(".".join(map(str, path)))
