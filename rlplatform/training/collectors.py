"""The host collector: steps Gymnasium environments and fills blocks. The one owner of the autoreset rule."""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from rlplatform import envs
from rlplatform.agents import Actor, RecurrentActor
from rlplatform.agents.acting import masked
from rlplatform.config import Config
from rlplatform.experience import Block, RecurrentBlock
from rlplatform.training import schedules

Array = np.ndarray[Any, Any]
DRAWN_AT_ONCE = 4_096  # random numbers for exploration


class Episode(NamedTuple):
    """An episode that ended while training, exploration included."""

    episode_return: float
    length: int


class HostCollector:
    """Acts epsilon-greedily in N environments and writes down what they lived through.

    Under NEXT_STEP autoreset, an episode's final observation gets a row of its own: a dead slot, whose action the
    environment ignores. Under SAME_STEP and DISABLED the row after an end already shows the next episode; there a
    truncated step's own slot becomes the dead one, so that its episode is cut one step earlier, and a termination loses
    nothing, since no value is bootstrapped from what comes after it.

    Where the environment offers action masks, the random and the greedy action are chosen among those that are allowed.

    Args:
        config: the run's.
        env: N vectorised environments, in any autoreset mode.
        spec: their spaces.
        actor: Q-values from published weights. Where it remembers, it is told where episodes begin and asked in every
            row, and blocks say what it remembered before their first row.
        worker: which of `workers` this is, each of which steps an equal part of the run's environments: what happens
            in an environment does not depend on who steps it.
        workers: how many there are.
    """

    def __init__(
        self,
        config: Config,
        env: gym.vector.VectorEnv[Any, Any, Any],
        spec: envs.Spec,
        actor: Actor,
        worker: int = 0,
        workers: int = 1,
    ) -> None:
        self._config, self._env, self._spec, self._actor = config, env, spec, actor
        self._mode = env.metadata["autoreset_mode"]
        self._num_envs = config.environment.num_envs // workers  # N
        self._own = slice(worker * self._num_envs, (worker + 1) * self._num_envs)  # among those of all workers
        self._stack = envs.Stack(spec, config.environment.frame_stack, self._num_envs)
        self._blocks = 0  # the counter of this collector's random numbers
        self._chunk = -1
        self._draws: tuple[Array, Array]
        self._num_masked = spec.num_actions if spec.action_mask else 0
        self._return, self._length = np.zeros(self._num_envs), np.zeros(self._num_envs, np.int64)
        self._cut = False
        self._frame: Array  # [N, O...], what the environments show now
        self._frame, infos = envs.reset(env, self._seeds("train"))
        self._mask = self._mask_of(infos)  # [N, A], the actions allowed there; None where all always are
        self._first = np.ones(self._num_envs, np.bool_)  # the next slot begins an episode
        self._over = np.zeros(self._num_envs, np.bool_)  # NEXT_STEP: the next slot is dead
        self._memory = actor if isinstance(actor, RecurrentActor) else None
        if self._memory is not None:
            self._memory.begin(self._first)

    @property
    def steps(self) -> int:
        """Env steps so far, over all workers' environments together, dead slots included."""
        return self._blocks * self._config.training.train_interval

    def collect(self, weights: Array) -> tuple[Block | RecurrentBlock, list[Episode]]:
        """Lives through one block.

        Args:
            weights: [P] float32, what to act with.

        Returns:
            The block, in arrays that nothing else holds, and the episodes that ended in it.
        """
        steps, num_envs = self._config.block_steps, self._num_envs
        block = Block.empty(steps, num_envs, self._spec.observation_shape, self._spec.stored_dtype, self._num_masked)
        truncated = np.zeros((steps, num_envs), np.bool_)
        explore, drawn = self._exploration()
        all_explore: Array = np.asarray(explore.all(axis=1))
        self._actor.load(weights, draw=self._blocks)
        cut, self._cut = self._cut, False
        before = None if self._memory is None else self._memory.state
        for t in range(steps):
            block.observation[t] = self._frame
            if self._mask is not None:
                block.action_mask[t] = self._mask
            observation = self._observed(block, truncated, t)
            if cut and t == 0:  # the environments of before are gone: this row only closes their episodes
                self._frame, infos = envs.reset(self._env, self._seeds(f"train after {self._blocks} blocks"))
                self._mask = self._mask_of(infos)
                truncated[t] = self._mode is not AutoresetMode.NEXT_STEP
                continue
            action = drawn[t] if self._mask is None else _allowed(drawn[t], self._mask)
            if self._memory is not None:
                self._memory.begin(self._begins(block, truncated, t))
            if self._memory is not None or not all_explore[t]:
                q = masked(self._actor.q_values(observation), self._mask)
                action = np.where(explore[t], action, q.argmax(axis=1))
            block.action[t] = action
            step = self._env.step(action + self._spec.action_start)
            self._frame, block.reward[t], block.terminated[t], truncated[t], infos = step
            self._mask = self._mask_of(infos)
            if self._mode is AutoresetMode.DISABLED:
                over = block.terminated[t] | truncated[t]
                if over.any():
                    self._frame, infos = self._env.reset(options={"reset_mask": over})
                    if self._mask is not None:  # the others' masks came with the step
                        self._mask[over] = envs.mask_of(infos, num_envs, self._num_masked)[over]
        self._blocks += 1
        block, episodes = self._marked(block, truncated, cut)
        return (block if before is None else RecurrentBlock(*block, before)), episodes

    def _mask_of(self, infos: dict[str, Any]) -> Array | None:
        """[N, A] bool, the actions that are allowed now; None where the environment offers no masks."""
        return envs.mask_of(infos, self._num_envs, self._num_masked) if self._num_masked else None

    def _observed(self, block: Block, truncated: Array, t: int) -> Array:
        """[N, S...], what the network sees in row t: the newest frames, joined within their episodes."""
        if self._config.environment.frame_stack == 1:
            frame = block.observation[t].astype(self._spec.observation_dtype, copy=False)
            return frame.reshape(self._num_envs, *self._spec.frame_shape)  # type: ignore[no-any-return]
        self._stack.push(block.observation[t])
        first = self._begins(block, truncated, t)
        if first.any():
            self._stack.reset(first, block.observation[t])
        return self._stack.observation

    def _begins(self, block: Block, truncated: Array, t: int) -> Array:
        """[N] bool, where row t begins an episode."""
        before, t_over = self._before(), t - len(self._before())
        return before[t] if t_over < 0 else block.terminated[t_over] | truncated[t_over]

    def _before(self) -> list[Array]:
        """`first` of the next slots, as far as what came before this block decides it.

        An episode begins in the slot after an end; under NEXT_STEP one later, since the slot after the end is dead.
        """
        return [self._first, self._over] if self._mode is AutoresetMode.NEXT_STEP else [self._first]

    def _marked(self, block: Block, truncated: Array, cut: bool) -> tuple[Block, list[Episode]]:
        """The block with its `first` and `dead` slots marked, and the episodes that ended in it."""
        over = block.terminated | truncated
        block.first[:] = np.concatenate((self._before(), over))[: len(over)]
        if self._mode is AutoresetMode.NEXT_STEP:
            block.dead[0], block.dead[1:] = self._over, over[:-1]
            lived = ~block.dead
            self._first, self._over = block.dead[-1].copy(), over[-1]
        else:
            block.dead[:] = truncated & ~block.terminated
            lived = np.ones_like(over)
            lived[0] = not cut
            self._first = over[-1]
        return block, self._episodes(block.reward, lived, over & lived)

    def _seeds(self, stream: str) -> list[int]:
        return envs.seeds(self._config.seed, self._config.environment.num_envs, stream)[self._own]

    def _exploration(self) -> tuple[Array, Array]:
        """[T, N] bool, where to explore, and [T, N], what the random actions follow from.

        That is one draw per environment and step: the action itself, int32, or, where actions are masked, a number from
        0 to 1. Drawn for many blocks at once: making a generator costs more than a block's numbers.
        """
        shape = (self._config.block_steps, self._config.environment.num_envs)
        at_once = max(1, DRAWN_AT_ONCE // (shape[0] * shape[1]))
        chunk, place = divmod(self._blocks, at_once)
        if chunk != self._chunk:
            seed = np.random.SeedSequence([self._config.seed, chunk], spawn_key=(1,))
            rng = np.random.Generator(np.random.Philox(seed))
            draws = rng.random((at_once, *shape), np.float32)
            actions: Array
            if self._num_masked:
                actions = rng.random((at_once, *shape))
            else:
                actions = rng.integers(self._spec.num_actions, size=(at_once, *shape), dtype=np.int32)
            self._chunk, self._draws = chunk, (draws, actions)
        draw, action = (drawn[place][:, self._own] for drawn in self._draws)
        steps = self.steps + np.arange(shape[0]) * shape[1]
        epsilon = schedules.values(self._config.exploration.epsilon, steps, self._config.training.total_steps)
        return draw < epsilon[:, None], action

    def _episodes(self, reward: Array, counts: Array, ended: Array) -> list[Episode]:
        """The episodes that end in this block, and what is carried into the next."""
        returns = np.cumsum(np.where(counts, reward, 0.0), axis=0, dtype=np.float64)  # [T, N]
        lengths = np.cumsum(counts, axis=0)
        before_return, before_length = -self._return, -self._length
        episodes = []
        with np.errstate(invalid="ignore"):  # infinite rewards end the run by a sentence, when they are learned from
            for env, t in zip(*np.nonzero(ended.T), strict=True):
                episode_return = float(returns[t, env] - before_return[env])
                episodes.append(Episode(episode_return, int(lengths[t, env] - before_length[env])))
                before_return[env], before_length[env] = returns[t, env], lengths[t, env]
            self._return, self._length = returns[-1] - before_return, lengths[-1] - before_length
        return episodes

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that `load_state` needs to go on; `env` is None where the environments cannot be pickled."""
        return {
            "env": envs.snapshot(self._env),
            "stack": self._stack,
            "frame": self._frame,
            "mask": self._mask,
            "first": self._first,
            "over": self._over,
            "return": self._return,
            "length": self._length,
            "blocks": self._blocks,
            "memory": None if self._memory is None else self._memory.state,
        }

    def load_state(self, state: dict[str, Any]) -> bool:
        """Goes on from `state`.

        Returns:
            Whether exactly: where the environments could not be pickled, new episodes begin instead, and the old ones
            are closed with the last observation that they showed.
        """
        self._stack, self._frame, self._blocks = state["stack"], state["frame"], state["blocks"]
        self._first, self._over, self._mask = state["first"], state["over"], state["mask"]
        self._return, self._length = state["return"], state["length"]
        if self._memory is not None:
            self._memory.state = state["memory"]
        if state["env"] is None:
            self._cut = True
            self._over = np.ones(self._num_envs, np.bool_)
            self._return, self._length = np.zeros(self._num_envs), np.zeros(self._num_envs, np.int64)
            return False
        self._env.close()
        self._env = envs.restore(state["env"])
        return True

    def close(self) -> None:
        """Closes the environments."""
        self._env.close()


def _allowed(draw: Array, mask: Array) -> Array:
    """[N] actions, each with the same chance among those that are allowed.

    Args:
        draw: [N], from 0 to 1.
        mask: [N, A] bool, true somewhere in every row.
    """
    place = np.floor(draw * mask.sum(axis=1))  # which one of the allowed
    return (mask.cumsum(axis=1) > place[:, None]).argmax(axis=1)  # type: ignore[no-any-return]
