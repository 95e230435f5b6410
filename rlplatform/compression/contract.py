"""What a device does around a file, by what `policy.json` says: whether that fits the environment."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from rlplatform import envs
from rlplatform.compression.gates import Gate
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.runtime import MANIFEST, FrameStack, Policy

Array = np.ndarray[Any, Any]

STEPS = 500  # in which stacks of frames, and what is remembered, are compared


def examine(policy: Policy, environment: EnvironmentConfig, seed: int, factory: Factory | None = None) -> list[Gate]:
    """The gate `contract`, `frames` where an observation has more than one, and `memory` where a policy remembers.

    Args:
        policy: of the bundle.
        environment: as the bundle says.
        seed: of the first episode in which frames are stacked or remembered (stream `frames`).
        factory: as for `verify`.
    """
    env = envs.make_single(environment, factory=factory)
    try:
        gates = [fits(policy.manifest, envs.spec_of(env))]
        if environment.frame_stack > 1 and gates[0].passed:
            gates.append(frames(policy, env, envs.seeds(seed, 1, "frames")[0]))
        if policy.remembers and gates[0].passed:
            gates.append(memory(policy, env, envs.seeds(seed, 1, "frames")[0]))
    finally:
        env.close()
    return gates


def fits(manifest: dict[str, Any], spec: envs.Spec) -> Gate:
    """Whether observations and actions are those of the environment.

    Episodes would not tell: in them, actions are counted from 0.

    Args:
        manifest: of the bundle.
        spec: of the environment, as it is here and now.
    """
    observation, action = manifest["observation"], manifest["action"]
    pairs = {
        "observation.frame_shape": (observation["frame_shape"], spec.observation_shape),
        "observation.dtype": (observation["dtype"], spec.observation_dtype),
        "observation.layout": (observation.get("layout"), spec.layout),
        "observation.binary": (observation.get("binary", False), spec.binary),
        "action.count": (action["count"], spec.num_actions),
        "action.start": (action["start"], spec.action_start),
        "action.layout": (action.get("layout"), spec.action_layout),
    }
    texts = {name: [json.dumps(side, sort_keys=True, default=str) for side in pair] for name, pair in pairs.items()}
    other = [f"{name} is {said}, and the environment's is {own}" for name, (said, own) in texts.items() if said != own]
    return Gate("contract", MANIFEST, not other, "; ".join(other) or "observations and actions are the environment's")


class _Met(NamedTuple):
    """What is seen in one step."""

    frame: Array  # [F...]
    observation: Array  # [O...], joined as training does
    mask: Array | None  # [A] bool
    begins: bool  # whether an episode does


def _walk(policy: Policy, env: Any, seed: int, step: Callable[[_Met], int]) -> None:
    """Goes `STEPS` steps through episodes, by the actions that `step` answers, as the environment counts."""
    spec = envs.spec_of(env)
    stack = envs.Stack(spec, policy.frame_stack, 1)
    shown, info = env.reset(seed=seed)
    begins = np.ones(1, np.bool_)
    for _ in range(STEPS):
        frame = np.asarray(shown, spec.observation_dtype)
        stack.push(frame[None])
        if begins.any():
            stack.reset(begins, frame[None])
        mask = envs.mask_row(info.get("action_mask"), spec.num_actions) if policy.needs_mask else None
        action = step(_Met(frame, stack.observation[0], mask, bool(begins[0])))
        shown, _, terminated, truncated, info = env.step(action)
        begins[:] = terminated or truncated
        if begins.any():
            shown, info = env.reset()


def frames(policy: Policy, env: Any, seed: int) -> Gate:
    """Whether the runtime's stacks of frames are those that training makes, over some steps.

    All other comparisons are about training's: golden states, and what files see in their episodes.

    Args:
        policy: of a bundle with more than one frame in an observation.
        env: from `envs.make_single`.
        seed: of the first episode.
    """
    given = FrameStack(tuple(policy.manifest["observation"]["frame_shape"]), policy.frame_stack)
    state, other = policy.initial_state, 0

    def step(met: _Met) -> int:
        nonlocal state, other
        if met.begins:
            given.reset()
            policy.reset()
            state = policy.initial_state
        if policy.remembers:
            action, _, state = policy.decide(met.observation, state, met.mask)
        else:
            action = policy.act(met.observation, met.mask)
        joined, decided = given.push(met.frame), policy.step(met.frame, met.mask)
        other += not (np.array_equal(joined, met.observation) and decided == action)
        return action

    _walk(policy, env, seed, step)
    return Gate(
        "frames",
        MANIFEST,
        not other,
        f"the runtime joins frames to another observation than training, or decides otherwise, in {other} of {STEPS} "
        "steps",
    )


def memory(policy: Policy, env: Any, seed: int) -> Gate:
    """Whether `Policy.step` remembers within an episode and forgets between two, over some steps.

    All other comparisons give the file its states from outside.

    Args:
        policy: of a bundle that remembers.
        env: from `envs.make_single`.
        seed: of the first episode.
    """
    state, other = np.zeros_like(policy.initial_state), 0

    def step(met: _Met) -> int:
        nonlocal state, other
        if met.begins:
            policy.reset()
            state = np.zeros_like(state)
        expected = policy.decide(met.observation, state, met.mask)
        decided, state = policy.step(met.frame, met.mask), expected.state
        other += not (decided == expected.action and np.array_equal(policy.state, state))
        return expected.action

    _walk(policy, env, seed, step)
    return Gate(
        "memory",
        MANIFEST,
        not other,
        f"the runtime remembers something else than what the file said, or decides otherwise, in {other} of {STEPS} "
        "steps",
    )
