"""What a device does around a file, by what `policy.json` says: whether that fits the environment."""

import json
from typing import Any

import numpy as np

from rlplatform import envs
from rlplatform.compression.gates import Gate
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.runtime import MANIFEST, FrameStack, Policy

STEPS = 500  # in which stacks of frames are compared


def examine(policy: Policy, environment: EnvironmentConfig, seed: int, factory: Factory | None = None) -> list[Gate]:
    """The gate `contract`, and `frames` where an observation has more than one.

    Args:
        policy: of the bundle.
        environment: as the bundle says.
        seed: of the first episode in which frames are stacked (stream `frames`).
        factory: as for `verify`.
    """
    env = envs.make_single(environment, factory=factory)
    try:
        gates = [fits(policy.manifest, envs.spec_of(env))]
        if environment.frame_stack > 1 and gates[0].passed:
            gates.append(frames(policy, env, envs.seeds(seed, 1, "frames")[0]))
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


def frames(policy: Policy, env: Any, seed: int) -> Gate:
    """Whether the runtime's stacks of frames are those that training makes, over some steps.

    All other comparisons are about training's: golden states, and what files see in their episodes.

    Args:
        policy: of a bundle with more than one frame in an observation.
        env: from `envs.make_single`.
        seed: of the first episode.
    """
    spec = envs.spec_of(env)
    expected = envs.Stack(spec, policy.frame_stack, 1)
    given = FrameStack(tuple(policy.manifest["observation"]["frame_shape"]), policy.frame_stack)
    shown, info = env.reset(seed=seed)
    begins, other = np.ones(1, np.bool_), 0
    for _ in range(STEPS):
        frame = np.asarray(shown, spec.observation_dtype)
        expected.push(frame[None])
        if begins.any():
            expected.reset(begins, frame[None])
            given.reset()
            policy.reset()
        mask = envs.mask_row(info.get("action_mask"), spec.num_actions) if policy.needs_mask else None
        action = policy.act(expected.observation[0], mask)
        joined, decided = given.push(frame), policy.step(frame, mask)
        other += not (np.array_equal(joined, expected.observation[0]) and decided == action)
        shown, _, terminated, truncated, info = env.step(action)
        begins[:] = terminated or truncated
        if begins.any():
            shown, info = env.reset()
    return Gate(
        "frames",
        MANIFEST,
        not other,
        f"the runtime joins frames to another observation than training, or decides otherwise, in {other} of {STEPS} "
        "steps",
    )
