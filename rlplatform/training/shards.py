"""What each replica or worker holds of a run, for checkpoints: merged, and divided among another number of them."""

from typing import Any

import numpy as np

from rlplatform import envs
from rlplatform.errors import RunError
from rlplatform.experience import Block, RecurrentBlock
from rlplatform.experience.priorities import sums

Array = np.ndarray[Any, Any]
State = dict[str, Array]

LEVEL, GREATEST, ROWS = "level_", "greatest", "rows_written"


def flat(parts: dict[str, State]) -> State:
    """`{"replay": {"reward": ...}}` as `{"replay/reward": ...}`."""
    return {f"{part}/{name}": array for part, arrays in parts.items() for name, array in arrays.items()}


def part(state: State, name: str) -> State:
    """What `flat` has put under `name`."""
    return {key.removeprefix(f"{name}/"): array for key, array in state.items() if key.startswith(f"{name}/")}


def named(name: str, shards: list[State]) -> State:
    """Shards as a checkpoint has them: under `name` where there is one, else under `name@0`, `name@1`, ..."""
    if len(shards) == 1:
        return flat({name: shards[0]})
    return flat({f"{name}@{index}": shard for index, shard in enumerate(shards)})


def found(name: str, state: State) -> list[State]:
    """The shards that `named` has put there; none where there are none."""
    if whole := part(state, name):
        return [whole]
    shards: list[State] = []
    while shard := part(state, f"{name}@{len(shards)}"):
        shards.append(shard)
    return shards


# --- rings of replicas ----------------------------------------------------------------------------------------------


def redistributed(shards: list[State], count: int, num_envs: int) -> list[State]:
    """The same experience in another number of shards; the very same arrays where the number does not change.

    Environments stay in order: the first shard has the first of them. What lies in the ring, and every priority, is
    as it was to the bit. Sums over priorities are made anew, and may differ in rounding; the greatest priority so far
    becomes that of all shards.

    Args:
        shards: the state of a `Replay` or a `SequenceReplay` on each replica.
        count: how many there are to be.
        num_envs: over all of them, which both numbers of shards divide.

    Raises:
        RunError: they hold other numbers of environments.
    """
    if len(shards) == count:
        return shards
    return _divided(_merged(shards, num_envs), count, num_envs)


def _merged(shards: list[State], num_envs: int) -> State:
    whole = {}
    for name in shards[0]:
        arrays = [shard[name] for shard in shards]
        if name == ROWS:
            whole[name] = arrays[0]
        elif name == GREATEST:
            whole[name] = np.max(arrays, axis=0)
        elif not name.startswith(LEVEL):
            whole[name] = _joined(arrays, num_envs)
    if LEVEL + "0" in shards[0]:
        places = _places(shards[0])
        numbers = [shard[LEVEL + "0"].ravel()[:places] for shard in shards]
        whole |= _levels(_joined(numbers, num_envs))
    return whole


def _divided(whole: State, count: int, num_envs: int) -> list[State]:
    shards: list[State] = [{} for _ in range(count)]
    for name, array in whole.items():
        if name.startswith(LEVEL):
            continue
        parts = [array] * count if name in (ROWS, GREATEST) else _split(array, count, num_envs)
        for shard, own in zip(shards, parts, strict=True):
            shard[name] = own
    if LEVEL + "0" in whole:
        numbers = whole[LEVEL + "0"].ravel()[: _places(whole)]
        for shard, own in zip(shards, _split(numbers, count, num_envs), strict=True):
            shard |= _levels(own)
    return shards


def _joined(arrays: list[Array], num_envs: int) -> Array:
    """`[rows * N / R, ...]` of R shards, by rows, as `[rows * N, ...]`."""
    own, size = num_envs // len(arrays), sum(map(len, arrays))
    return np.concatenate([_rows(array, own) for array in arrays], axis=1).reshape(size, *arrays[0].shape[1:])


def _split(array: Array, count: int, num_envs: int) -> list[Array]:
    parts = np.split(_rows(array, num_envs), count, axis=1)
    return [np.ascontiguousarray(part).reshape(len(array) // count, *array.shape[1:]) for part in parts]


def _rows(array: Array, num_envs: int) -> Array:
    """`[rows * N, ...]` as `[rows, N, ...]`."""
    if len(array) % num_envs:
        raise RunError(f"the checkpoint's replay has {len(array)} places, which {num_envs} environments do not share")
    return array.reshape(len(array) // num_envs, num_envs, *array.shape[1:])


def _places(shard: State) -> int:
    """How many places a shard has a priority for."""
    return len(shard["reward"] if "reward" in shard else shard["state_before"])


def _levels(numbers: Array) -> State:
    return {f"{LEVEL}{index}": level for index, level in enumerate(sums(numbers))}


# --- what workers have on the host ----------------------------------------------------------------------------------


def blocks(told: list[Block | RecurrentBlock | None], workers: int) -> list[Any]:
    """What some workers have lived through in the same steps, as another number of them would have; all or none has."""
    first = told[0]
    if len(told) == workers:
        return told
    if first is None:
        return [None] * workers
    axes = [0 if name == "state" else 1 for name in first._fields]
    columns: Any = zip(*told, strict=True)
    fields = [np.concatenate(parts, axis) for parts, axis in zip(columns, axes, strict=True)]
    divided = [np.split(field, workers, axis) for field, axis in zip(fields, axes, strict=True)]
    return [type(first)(*map(np.ascontiguousarray, parts)) for parts in zip(*divided, strict=True)]


def collectors(states: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """The states of collectors for another number of workers, in the order of environments.

    What was seen goes on; the environments themselves are in snapshots that cannot be divided, so new episodes begin
    (see `HostCollector.load_state`). The very same states where the number does not change.
    """
    if len(states) == workers:
        return states
    whole = {name: _one([state[name] for state in states]) for name in states[0]}
    parts = {name: _several(value, workers) for name, value in whole.items()}
    return [{name: values[worker] for name, values in parts.items()} | {"env": None} for worker in range(workers)]


def _one(values: list[Any]) -> Any:
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return envs.Stack.joined(values) if isinstance(values[0], envs.Stack) else values[0]


def _several(value: Any, count: int) -> list[Any]:
    if isinstance(value, np.ndarray):
        return np.split(value, count)
    return value.divided(count) if isinstance(value, envs.Stack) else [value] * count
