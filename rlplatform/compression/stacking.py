"""Whether a bundle's runtime joins frames to the observations that its network has learned from."""

import numpy as np

from rlplatform import envs
from rlplatform.compression.gates import Gate
from rlplatform.config import EnvironmentConfig
from rlplatform.envs.naming import Factory
from rlplatform.runtime import FrameStack, Policy

STEPS = 500


def frames(
    file: str, policy: Policy, environment: EnvironmentConfig, seed: int, factory: Factory | None = None
) -> Gate:
    """The gate `frames`: over some steps in the environment, the runtime's stacks are those that training makes.

    Everything else that is compared has training's stacks: golden states, and what files see in their episodes.

    Args:
        file: the name of the file that decides.
        policy: of the bundle.
        environment: with more than one frame in a stack.
        seed: of the first episode (stream `frames`).
        factory: as for `verify`.
    """
    env = envs.make_single(environment, factory=factory)
    try:
        spec = envs.spec_of(env)
        expected = envs.Stack(spec, environment.frame_stack, 1)
        given = FrameStack(tuple(policy.manifest["observation"]["frame_shape"]), policy.frame_stack)
        begins, first = np.ones(1, np.bool_), envs.seeds(seed, 1, "frames")[0]
        shown, info = env.reset(seed=first)
        other = 0
        for _ in range(STEPS):
            frame = np.asarray(shown, spec.observation_dtype)
            expected.push(frame[None])
            if begins.any():
                expected.reset(begins, frame[None])
                given.reset()
                policy.reset()
            mask = envs.mask_row(info.get("action_mask"), spec.num_actions) if policy.needs_mask else None
            action = policy.act(expected.observation[0], mask)
            same = np.array_equal(given.push(frame), expected.observation[0]) and policy.step(frame, mask) == action
            other += not same
            shown, _, terminated, truncated, info = env.step(action)
            begins[:] = terminated or truncated
            if begins.any():
                shown, info = env.reset()
    finally:
        env.close()
    return Gate(
        "frames",
        file,
        not other,
        f"the runtime joins frames to another observation than training, or decides otherwise, in {other} of {STEPS} "
        "steps",
    )
