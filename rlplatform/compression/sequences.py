"""The golden states of a network that remembers: episodes from their beginnings, with what it had in mind."""

from typing import Any

import numpy as np

from rlplatform import envs
from rlplatform.agents.acting import flatten, make_actor, masked
from rlplatform.compression.reference import BATCH, Golden
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.training import evaluate, greedy

Array = np.ndarray[Any, Any]

EPISODES = 8  # At least so many share the golden states.


def golden_sequences(
    network: Any,
    canonical: Any,
    environment: EnvironmentConfig,
    count: int,
    seed: int,
    *,
    factory: Factory | None = None,
) -> Golden:
    """Plays whole episodes by the network and keeps their beginnings.

    Args:
        network: recurrent, from `agents.networks.build`.
        canonical: its canonical form.
        environment: where it plays.
        count: how many steps are kept.
        seed: of the episodes (stream `golden`).
        factory: as for `training.evaluate`.

    Returns:
        `count` steps: an eighth of them at most from one episode, so that there are eight of them or more.
    """
    actor: Any = make_actor(network)
    actor.load(flatten(network.get_weights()))
    play = greedy(actor)
    rows: list[tuple[Array, ...]] = []
    begins, left = True, 0

    def act(observations: Array, *masks: Array) -> Array:
        nonlocal begins, left
        if left:
            kept = (observations, actor.state, np.array([begins]), *masks)
            rows.append(tuple(column[0].copy() for column in kept))
            begins, left = False, left - 1
        return play(observations, *masks)

    act.begin = lambda first, live: actor.begin(first)  # type: ignore[attr-defined]
    seeds = iter(envs.seeds(seed, count, "golden"))  # Enough even for episodes of one step.
    while len(rows) < count:
        begins, left = True, min(-(-count // EPISODES), count - len(rows))
        evaluate(act, environment, [next(seeds)], factory=factory)
    observations, states, first, *masks = (np.stack(column) for column in zip(*rows, strict=True))
    q, next_states = canonical.predict([observations.astype(np.float32), states], batch_size=BATCH, verbose=0)
    allowed = masks[0] if masks else None
    own, _ = network.predict([observations, states], batch_size=BATCH, verbose=0)
    actions = masked(own, allowed).argmax(axis=1).astype(np.int64)
    return Golden(observations, q, actions, allowed, states, next_states, first)
