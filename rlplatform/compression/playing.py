"""How networks and a bundle's files play: as evaluation asks them, each with its own memory where it remembers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlplatform.agents.acting import forget, masked
from rlplatform.compression.calibration import Reservoir
from rlplatform.compression.reference import Golden, Network
from rlplatform.runtime import Policy
from rlplatform.training import Act

Array = np.ndarray[Any, Any]


class Answers(NamedTuple):
    """What a file gives for N observations."""

    q: Array  # [N, A] float32
    actions: Array  # [N] int64, counted from 0
    states: Array | None = None  # [N, H] float32, what it has in mind after each, if it remembers


Decide = Callable[..., tuple[Array, Array]]
"""From [n, O...] observations, [n, H] states and, maybe, [n, A] masks to [n] actions and the states after."""


class Remembering:
    """A policy that remembers, as evaluation asks it (see `Act`): it keeps a state for each environment.

    Args:
        decide: is asked about the environments in which an episode is played.
        state_size: H.
    """

    def __init__(self, decide: Decide, state_size: int) -> None:
        self._decide = decide
        self._states: Array = np.zeros((0, state_size), np.float32)
        self._live: Array = np.zeros(0, np.bool_)

    def begin(self, first: Array, live: Array) -> None:
        """Forgets what was before where an episode begins."""
        self._states, self._live = forget(self._states, first), live.copy()

    def __call__(self, observations: Array, *masks: Array) -> Array:
        """One step of all episodes that are played; 0 for the others."""
        live = self._live
        actions = np.zeros(len(live), np.int64)
        rows = [column[live] for column in (observations, self._states, *masks)]
        actions[live], self._states[live] = self._decide(*rows)
        return actions


def act_of(policy: Policy) -> Act:
    """A bundle's policy as evaluation asks it: actions counted from 0, whatever the environment calls the first."""
    if not policy.remembers:
        return lambda observations, *masks: policy.act_batch(observations, *masks) - policy.action_start

    def decide(observations: Array, states: Array, *masks: Array) -> tuple[Array, Any]:
        _, actions, after = decisions(policy, observations, states, *masks)
        return actions, after

    return Remembering(decide, len(policy.initial_state))


def act_of_reference(network: Network) -> Act:
    """A network from its SavedModel, as evaluation asks it."""

    def act(observations: Array, masks: Array | None = None) -> Array:
        actions: Array = masked(network.q_values(observations), masks).argmax(axis=1)
        return actions

    def decide(observations: Array, states: Array, masks: Array | None = None) -> tuple[Array, Array]:
        q, after = network.answers(observations, states)
        return masked(q, masks).argmax(axis=1), after

    return Remembering(decide, network.state_size) if network.state_size else act


def beside(policy: Policy, network: Network, reservoir: Reservoir) -> Act:
    """A file that plays, and beside it the network, which sees the same and remembers it by itself.

    Asked about the file's own states, the network would never see that the file has forgotten something.

    Args:
        policy: plays.
        network: is asked too.
        reservoir: gets the values of both, `[n, 2, A]`, the network's first, and the masks.
    """

    def decide(observations: Array, states: Array, *masks: Array) -> tuple[Array, Array]:
        own, networks = np.split(states, 2, axis=1)
        played = decisions(policy, observations, own, *masks)
        network_q, after = network.answers(observations, networks)
        reservoir.add(np.stack([network_q, played.q], axis=1), *masks)
        return played.actions, np.concatenate([np.asarray(played.states), after], axis=1)

    return Remembering(decide, 2 * network.state_size)


def answers(policy: Policy, golden: Golden) -> Answers:
    """What a file says of each golden observation; of one that remembers, by the state that is golden too."""
    if golden.states is not None:
        masks = () if golden.masks is None else (golden.masks,)
        return decisions(policy, golden.observations, golden.states, *masks)
    q = np.stack([policy.q_values(observation) for observation in golden.observations])
    return Answers(q, policy.act_batch(golden.observations, golden.masks) - policy.action_start)


def unrolled(policy: Policy, golden: Golden) -> Array:
    """`[N, A]`: the values of a file that goes through the golden sequences by what it remembers itself."""
    assert golden.first is not None
    rows, state = [], policy.initial_state
    columns = (golden.observations, golden.first, *(() if golden.masks is None else (golden.masks,)))
    for observation, first, *mask in zip(*columns, strict=True):
        _, q, state = policy.decide(observation, policy.initial_state if first else state, *mask)
        rows.append(q)
    return np.stack(rows)


def decisions(policy: Policy, observations: Array, states: Array, *masks: Array) -> Answers:
    """What a file that remembers gives, row by row."""
    actions, q, after = zip(*map(policy.decide, observations, states, *masks), strict=True)
    return Answers(np.stack(q), np.array(actions, np.int64) - policy.action_start, np.stack(after))
