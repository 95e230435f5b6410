"""How an observation of several entries becomes one array: recorded as plain data, which `Flattening` applies.

A layout is a dictionary that JSON can hold, so that a bundle can say what its user must do with an observation:

- `flat`: whether the array is a float32 vector of all entries, one after the other; else it is the only entry itself.
- `entries`: for each entry its `path` (the keys and indices that lead to it), `kind` (Box, Discrete, MultiDiscrete or
  MultiBinary), `shape`, `dtype`, and the `offset` and `length` of its part of the vector. Discrete and MultiDiscrete
  have `sizes` and `start` too: each of their numbers becomes a one-hot of that size, counted from its start. An image
  with channels first has `axes`, the order in which its axes are taken to put the channels last.
- `left_out`: `path` and `kind` of entries that no network sees.
- `action_mask`: the path of the entry that says which actions are allowed, or None.
"""

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlplatform.errors import UserError

Layout = dict[str, Any]
Path = tuple[Any, ...]
Array = NDArray[Any]

SUPPORTED = (
    "supported are observations of Box, Discrete, MultiDiscrete and MultiBinary spaces, and Dict and Tuple of them, "
    "and actions of Discrete, MultiDiscrete and MultiBinary spaces"
)
ACTION_MASK = "action_mask"
LARGEST = 1_000_000  # numbers in a flat observation
LARGE_IMAGE = 36  # pixels of an image's sides from which convolutions see more than dense layers do
_CHANNELS = (1, 3, 4)
_FEW = 4  # channels are few where the sides are at least so many times as long


def layout_of(space: gym.Space[Any], name: str) -> Layout | None:
    """How observations of `space` become one array; None where they are one already and stay as they are.

    A Box stays a Box of its shape, with channels last if it is a uint8 image with channels first. So does the only
    entry of a Dict or Tuple if it is a Box. All else becomes a vector, in the order and by the rules of
    `gymnasium.spaces.flatten`. Text is left out.

    Args:
        space: of single observations.
        name: what messages call the environment.

    Raises:
        UserError: an entry is of another kind, or there is nothing to see, or too much.
    """
    leaves: list[tuple[Path, gym.Space[Any]]] = []
    left_out, mask = [], None
    for path, leaf in _leaves(space):
        if path == (ACTION_MASK,) and isinstance(space, spaces.Dict):
            mask = list(path)
        elif path and _is_text(leaf):
            left_out.append({"path": list(path), "kind": "Text"})
        else:
            _check(leaf, path, name)
            leaves.append((path, leaf))
    if not leaves:
        raise UserError(f"{name} has observations of {short(space)}, in which there is nothing to see; {SUPPORTED}")
    flat = len(leaves) > 1 or not isinstance(leaves[0][1], spaces.Box) or leaves[0][1].shape == ()
    entries, offset = [], 0
    for path, leaf in leaves:
        entries.append(_entry(path, leaf, offset))
        offset += entries[-1]["length"]
    if flat and offset > LARGEST:
        raise UserError(f"{name} has observations of {offset:,} numbers once they are flat; at most {LARGEST:,} are")
    if not flat:
        axes = _channels_last(leaves[0][1])
        if axes is not None:
            entries[0]["axes"] = axes
        elif not leaves[0][0]:
            return None
    return {"flat": flat, "entries": entries, "left_out": left_out, "action_mask": mask}


def space_of(layout: Layout, space: gym.Space[Any]) -> spaces.Box:
    """The Box of what `layout` makes of observations of `space`."""
    leaves = [at(space, entry["path"]) for entry in layout["entries"]]
    if not layout["flat"]:
        box = leaves[0]
        axes = layout["entries"][0].get("axes")
        if axes is None:
            return box  # type: ignore[no-any-return]
        return spaces.Box(box.low.transpose(axes), box.high.transpose(axes), dtype=box.dtype)
    low = np.concatenate(
        [_bound(leaf, "low", 0.0, entry) for leaf, entry in zip(leaves, layout["entries"], strict=True)]
    )
    high = np.concatenate(
        [_bound(leaf, "high", 1.0, entry) for leaf, entry in zip(leaves, layout["entries"], strict=True)]
    )
    return spaces.Box(low, high, dtype=np.float32)


def notes(layout: Layout | None) -> list[str]:
    """What a user should know of a layout, in sentences."""
    if layout is None:
        return []
    texts = [place(entry["path"]) for entry in layout["left_out"]]
    said = [f"the observation's text at {', '.join(texts)} is left out: no network here reads it"] if texts else []
    pixels = [entry for entry in layout["entries"] if layout["flat"] and _is_large_image(entry)]
    said += [
        f"the observation's image at {place(entry['path'])} becomes {entry['length']:,} numbers of a vector, and a "
        "vector has no convolutions; an environment that shows the image alone has them"
        for entry in pixels
    ]
    return said


def _leaves(space: gym.Space[Any], path: Path = ()) -> Iterator[tuple[Path, gym.Space[Any]]]:
    """Every entry that is neither a Dict nor a Tuple, in Gymnasium's order."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index))
    else:
        yield path, space


def _check(leaf: gym.Space[Any], path: Path, name: str) -> None:
    """Refuses an entry that cannot become numbers."""
    where = f" at {place(path)}" if path else ""
    if not isinstance(leaf, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise UserError(f"{name} has observations of {short(leaf)}{where}, and {SUPPORTED}")
    if isinstance(leaf, spaces.Box) and (leaf.dtype is None or leaf.dtype.kind not in "fiub"):
        raise UserError(f"{name} has a Box of dtype {leaf.dtype} as observation{where}, and {SUPPORTED}")
    if 0 in (leaf.shape or ()):
        raise UserError(f"{name} has observations of shape {leaf.shape}{where}; supported is no axis of size 0")


def _entry(path: Path, leaf: Any, offset: int) -> dict[str, Any]:
    kind = next(kind for kind in ("Box", "Discrete", "MultiDiscrete", "MultiBinary") if _is(leaf, kind))
    entry: dict[str, Any] = {
        "path": list(path),
        "kind": kind,
        "shape": [int(size) for size in leaf.shape],
        "dtype": str(leaf.dtype),
        "offset": offset,
    }
    if kind in ("Discrete", "MultiDiscrete"):
        sizes = leaf.n if kind == "Discrete" else leaf.nvec
        entry["sizes"] = np.ravel(sizes).astype(np.int64).tolist()
        entry["start"] = np.ravel(leaf.start).astype(np.int64).tolist()
        entry["length"] = sum(entry["sizes"])
    else:
        entry["length"] = int(np.prod(leaf.shape))
    return entry


def _is(leaf: Any, kind: str) -> bool:
    return isinstance(leaf, getattr(spaces, kind))


def _is_text(leaf: gym.Space[Any]) -> bool:
    """Gymnasium's Text, or a space of one's own whose values are strings, as MiniGrid's missions are."""
    return isinstance(leaf, spaces.Text) or (leaf.dtype is not None and leaf.dtype.kind in "US")


def _channels_last(box: Any) -> list[int] | None:
    """The order of axes that puts the channels of a uint8 image `[C, H, W]` last; None where they are not first."""
    if box.dtype != np.uint8 or len(box.shape) != 3:
        return None
    channels, side = box.shape[0], min(box.shape[1:])
    first = channels < side and (channels in _CHANNELS or _FEW * channels <= side)
    return [1, 2, 0] if first else None


def _is_large_image(entry: dict[str, Any]) -> bool:
    sides = sorted(entry["shape"])[-2:]
    return entry["kind"] == "Box" and len(entry["shape"]) in (2, 3) and sides[0] >= LARGE_IMAGE


def _bound(leaf: Any, side: str, otherwise: float, entry: dict[str, Any]) -> Array:
    if entry["kind"] != "Box":
        return np.full(entry["length"], otherwise, np.float32)
    with np.errstate(over="ignore"):  # the largest float64 means no bound
        return getattr(leaf, side).reshape(-1).astype(np.float32)  # type: ignore[no-any-return]


def at(tree: Any, path: Any) -> Any:
    """The entry of a nested observation or space."""
    for key in path:
        tree = tree[key]
    return tree


def place(path: Any) -> str:
    """A path for a message."""
    return ".".join(map(str, path)) or "its top"


def short(space: Any) -> str:
    """The space in one line of at most 80 characters."""
    text = " ".join(str(space).split())
    return text if len(text) <= 80 else f"{text[:77]}..."
