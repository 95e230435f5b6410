"""From observations to arrays: a layout, applied to one observation or to those of many environments side by side."""

from typing import Any, NamedTuple

import numpy as np

from rlplatform.envs.layout import ACTION_MASK, Array, Layout, Path, at, place
from rlplatform.errors import UserError


class Flattening:
    """A layout, applied.

    Args:
        layout: from `layout_of`.
    """

    def __init__(self, layout: Layout) -> None:
        self._flat: bool = layout["flat"]
        self._parts = [_part(entry) for entry in layout["entries"]]
        self._length = sum(part.length for part in self._parts)
        self._mask_path: Path | None = None if layout[ACTION_MASK] is None else tuple(layout[ACTION_MASK])

    def one(self, observation: Any) -> Array:
        """The array of one observation: `[d]` float32, a new one, or the only entry.

        Raises:
            UserError: an entry is not in its space.
        """
        if not self._flat:
            part = self._parts[0]
            value = np.asarray(at(observation, part.path))
            return value if part.axes is None else value.transpose(part.axes)
        vector = np.zeros(self._length, np.float32)
        for part in self._parts:
            value = observation
            for key in part.path:
                value = value[key]
            if part.sizes is None:
                value = np.asarray(value)
                if value.size != part.length:  # assigning would broadcast it
                    raise part.unfit(value)
                vector[part.offset : part.end] = value.reshape(-1)
            elif part.single:
                position = int(value) - part.first
                if not 0 <= position < part.length:
                    raise part.unfit(value)
                vector[part.offset + position] = 1.0
            else:
                vector[part.ones(value, 1)[0]] = 1.0
        return vector

    def many(self, observations: Any, num_envs: int) -> Array:
        """The arrays of N observations that stand side by side, as vector environments give them: `[N, O...]`.

        Raises:
            UserError: an entry is not in its space.
        """
        if not self._flat:
            part = self._parts[0]
            values = np.asarray(at(observations, part.path))
            return values if part.axes is None else values.transpose(0, *(axis + 1 for axis in part.axes))
        vectors = np.zeros((num_envs, self._length), np.float32)
        rows = np.arange(num_envs)[:, None]
        for part in self._parts:
            values = np.asarray(at(observations, part.path))
            if part.sizes is not None:
                vectors[rows, part.ones(values, num_envs)] = 1.0
                continue
            if values.size != num_envs * part.length:
                raise part.unfit(values)
            vectors[:, part.offset : part.end] = values.reshape(num_envs, -1)
        return vectors

    def mask(self, observation: Any) -> Any:
        """The entry that says which actions are allowed, as it is; None where the layout names none."""
        return None if self._mask_path is None else at(observation, self._mask_path)


class _Part(NamedTuple):
    """An entry of a layout, prepared for speed."""

    path: Path
    offset: int
    end: int
    length: int
    axes: tuple[int, ...] | None
    sizes: Array | None  # [k] of one-hots; None: numbers that are taken as they are
    start: Array | None  # [k]
    bases: Array | None  # [k] where each one-hot begins
    single: bool  # one one-hot
    first: int  # its start
    kind: str

    def ones(self, values: Any, rows: int) -> Array:
        """[rows, k], where the ones stand."""
        assert self.sizes is not None
        assert self.start is not None
        assert self.bases is not None
        position: Array = np.asarray(values).astype(np.int64)
        if position.size != rows * len(self.sizes):
            raise self.unfit(values)
        position = position.reshape(rows, -1) - self.start
        if ((position < 0) | (position >= self.sizes)).any():
            raise self.unfit(values)
        return position + self.bases

    def unfit(self, value: Any) -> UserError:
        return UserError(
            f"the observation at {place(self.path)} is not in its space of kind {self.kind}: the environment shows "
            f"{' '.join(str(value).split())[:80]}"
        )


def _part(entry: dict[str, Any]) -> _Part:
    hot = "sizes" in entry
    sizes = np.array(entry["sizes"], np.int64) if hot else None
    start = np.array(entry["start"], np.int64) if hot else None
    offset, length = entry["offset"], entry["length"]
    return _Part(
        path=tuple(entry["path"]),
        offset=offset,
        end=offset + length,
        length=length,
        axes=tuple(entry["axes"]) if "axes" in entry else None,
        sizes=sizes,
        start=start,
        bases=None if sizes is None else offset + np.concatenate(([0], np.cumsum(sizes)[:-1])),
        single=entry["kind"] == "Discrete",
        first=entry["start"][0] if hot else 0,
        kind=entry["kind"],
    )
