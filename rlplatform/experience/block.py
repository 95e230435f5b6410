"""What environments lived through: the block that collectors fill, and the batch that updates learn from."""

from typing import Any, NamedTuple

import numpy as np


class Block(NamedTuple):
    """T steps of N environments, time-major; arrays of numpy when collected, tensors inside `learn`.

    A *slot* is one environment's part of one row. It holds what was seen and done at that step; what was seen next is
    in the next slot. A *dead* slot carries an observation that only closes an episode (Gymnasium's NEXT_STEP
    autoreset): its action and reward mean nothing, and it is never the start of a transition.
    """

    observation: Any  # [T, N, O...] in the environment's dtype, one frame
    action: Any  # [T, N] int32
    reward: Any  # [T, N] float32, what the action brought
    terminated: Any  # [T, N] bool, the action ended the episode for good: nothing comes after it
    first: Any  # [T, N] bool, the slot begins an episode: frame stacks stop here
    dead: Any  # [T, N] bool
    action_mask: Any  # [T, N, A] bool, the actions allowed at the observation; [T, N, 0] where all always are

    @staticmethod
    def empty(
        steps: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        observation_dtype: str,
        num_masked_actions: int = 0,
    ) -> "Block":
        """A block of zeros to be filled in place; `num_masked_actions` is A where the environment masks actions."""
        rows = (steps, num_envs)
        return Block(
            observation=np.zeros((*rows, *observation_shape), observation_dtype),
            action=np.zeros(rows, np.int32),
            reward=np.zeros(rows, np.float32),
            terminated=np.zeros(rows, np.bool_),
            first=np.zeros(rows, np.bool_),
            dead=np.zeros(rows, np.bool_),
            action_mask=np.zeros((*rows, num_masked_actions), np.bool_),
        )


class Batch(NamedTuple):
    """B transitions for one update: tensors `[B, ...]`, or `[U, B, ...]` for U updates."""

    observation: Any  # [B, S...] frames stacked along the last axis
    action: Any  # [B] int32
    reward: Any  # [B] float32, the discounted sum of up to n rewards
    discount: Any  # [B] float32, gamma ** steps taken, 0 after a termination
    next_observation: Any  # [B, S...] where the value is bootstrapped from
    weight: Any  # [B] float32, of the item in the loss: 0 where the draw fell on a dead slot, else its importance
    action_mask: Any  # [B, A] bool, the actions allowed at `observation`; [B, 0] where all always are
    next_action_mask: Any  # [B, A] bool, at `next_observation`; or [B, 0]
    slot: Any  # [B] int32, where in the ring the transition starts
