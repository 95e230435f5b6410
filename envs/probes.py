"""Small environments whose every transition or Q-value is known: to test an agent with, and as examples to write by.

Each is usable by name, as `rlplatform train rlplatform.envs.probes:Catch`. The five probes, after Andy Jones (2021,
"Debugging RL, without the agonizing pain"), each name the broken part: an agent that fails at one and passes those
before it is wrong in what that one adds.
"""

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from rlplatform.errors import UserError

Observation = NDArray[np.float32]
Step = tuple[Any, float, bool, bool, dict[str, Any]]
End = Literal["terminated", "truncated", "both"]


class Counting(gym.Env[Observation, np.int64]):
    """An environment that counts, so that a transition anywhere downstream can be told from its numbers.

    The observation is `[identity, episode, step]`, float32: the seed of the last seeded reset (0 without one), the
    episodes since then, and the steps of this episode. Episode `e` has `lengths[(identity + e) % len(lengths)]` steps
    and ends as `ends[(identity + e) % len(ends)]` says. The reward is `reward_of(identity, episode, step, action)`,
    exact in float32.

    Args:
        lengths: steps of the episodes in turn, each at least 1.
        ends: how they end in turn: `terminated`, `truncated` or `both`.
        num_actions: A.
        action_start: the first action's number.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        lengths: Sequence[int] = (3, 5, 1),
        ends: Sequence[End] = ("terminated", "truncated"),
        num_actions: int = 3,
        action_start: int = 0,
    ) -> None:
        if not lengths or min(lengths) < 1:
            raise UserError(f"lengths must be whole numbers from 1 on, like [3, 5]; got {list(lengths)}")
        if not ends or not set(ends) <= {"terminated", "truncated", "both"}:
            raise UserError(f"ends must be a list of 'terminated', 'truncated' and 'both'; got {list(ends)}")
        self.lengths, self.ends = tuple(lengths), tuple(ends)
        self.observation_space = gym.spaces.Box(0.0, 2.0**24, (3,), np.float32)
        self.action_space = gym.spaces.Discrete(num_actions, start=action_start)
        self.identity, self.episode, self.step_in_episode = 0, -1, 0

    @staticmethod
    def reward_of(identity: int, episode: int, step: int, action: int) -> float:
        """The reward of taking `action` (the environment's number for it) at `step`."""
        return (identity % 16) * 64.0 + (episode % 16) * 4.0 + (step % 64) / 16.0 + (action % 16) / 256.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins the next episode; with a seed, the first episode of that identity."""
        super().reset(seed=seed)
        if seed is not None:
            self.identity, self.episode = seed % 2**24, -1
        self.episode += 1
        self.step_in_episode = 0
        return self._observation(), {}

    def step(self, action: np.int64) -> Step:
        """Counts one on; the last step of the episode's length ends it."""
        reward = self.reward_of(self.identity, self.episode, self.step_in_episode, int(action))
        self.step_in_episode += 1
        turn = self.identity + self.episode
        over = self.step_in_episode >= self.lengths[turn % len(self.lengths)]
        end = self.ends[turn % len(self.ends)]
        return self._observation(), reward, over and end != "truncated", over and end != "terminated", {}

    def _observation(self) -> Observation:
        return np.array([self.identity, self.episode, self.step_in_episode], np.float32)


class _Probe(gym.Env[Observation, np.int64]):
    """One number as observation, one or two steps, a reward at the last of them."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration
    num_actions = 1

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(self.num_actions)
        self.observation = np.zeros(1, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Shows the first observation."""
        super().reset(seed=seed)
        self.observation = self.first()
        return self.observation.copy(), {}

    def step(self, action: np.int64) -> Step:
        """Ends the episode with its reward; the observation stays."""
        return self.observation.copy(), self.reward(int(action)), True, False, {}

    def first(self) -> Observation:
        """The first observation: 0."""
        return np.zeros(1, np.float32)

    def reward(self, action: int) -> float:
        """The reward of the last step."""
        raise NotImplementedError

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """Every observation that can be acted on `[S, 1]`, and the Q-values there `[S, A]`."""
        raise NotImplementedError

    def _coin(self) -> Observation:
        return np.array([self.np_random.choice([-1.0, 1.0])], np.float32)


class ConstantReward(_Probe):
    """Probe 1: one action, one step, reward 1. `Q(0) = 1`. A failure: the loss or the optimiser does nothing."""

    def reward(self, action: int) -> float:
        """1."""
        return 1.0

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`Q(0) = 1`."""
        return np.zeros((1, 1), np.float32), np.ones((1, 1))


class ObservationReward(_Probe):
    """Probe 2: the observation is -1 or 1 and is the reward. `Q(o) = o`. A failure: the network does not see it."""

    def first(self) -> Observation:
        """-1 or 1."""
        return self._coin()

    def reward(self, action: int) -> float:
        """The observation."""
        return float(self.observation[0])

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`Q(o) = o`."""
        return np.array([[-1.0], [1.0]], np.float32), np.array([[-1.0], [1.0]])


class TwoSteps(_Probe):
    """Probe 3: observation 0, then 1; reward 1 at the end. `Q(0) = gamma`, `Q(1) = 1`. A failure: bootstrapping."""

    def step(self, action: np.int64) -> Step:
        """From 0 to 1 without a reward, then to the end."""
        if self.observation[0] == 0.0:
            self.observation = np.ones(1, np.float32)
            return self.observation.copy(), 0.0, False, False, {}
        return super().step(action)

    def reward(self, action: int) -> float:
        """1."""
        return 1.0

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`Q(0) = gamma`, `Q(1) = 1`."""
        return np.array([[0.0], [1.0]], np.float32), np.array([[gamma], [1.0]])


class ActionReward(_Probe):
    """Probe 4: action 0 gives -1, action 1 gives 1. `Q(0, a) = 2a - 1`. A failure: actions are mixed up."""

    num_actions = 2

    def reward(self, action: int) -> float:
        """-1 or 1."""
        return 2.0 * action - 1.0

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`Q(0, a) = 2a - 1`."""
        return np.zeros((1, 1), np.float32), np.array([[-1.0, 1.0]])


class ActionAndObservation(_Probe):
    """Probe 5: the observation is -1 or 1; action 0 is right at -1, action 1 at 1; right gives 1, wrong gives -1.

    `Q(o, a) = o (2a - 1)`. A failure: observations and actions of different steps are put together.
    """

    num_actions = 2

    def first(self) -> Observation:
        """-1 or 1."""
        return self._coin()

    def reward(self, action: int) -> float:
        """1 where the action fits the observation, else -1."""
        return float(self.observation[0]) * (2.0 * action - 1.0)

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`Q(o, a) = o (2a - 1)`."""
        return np.array([[-1.0], [1.0]], np.float32), np.array([[1.0, -1.0], [-1.0, 1.0]])


PROBES = (ConstantReward, ObservationReward, TwoSteps, ActionReward, ActionAndObservation)


class Masked(gym.Env[Any, np.int64]):
    """Random action masks: the observation is -1 or 1; best is the last allowed action at 1, and the first one at -1.

    Every step draws a new observation and a new mask, in which each action is allowed with a chance of one half and one
    of them surely. The reward of action a is `o (2 a / (A - 1) - 1)`; a forbidden one raises an AssertionError.

    Args:
        by: where the mask stands: in the `info`, or as an entry of the `observation`.
        num_actions: A, at least 2.
        ending: the chance that a step ends the episode.
        action_start: the first action's number.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        by: Literal["info", "observation"] = "info",
        num_actions: int = 5,
        ending: float = 0.2,
        action_start: int = 0,
    ) -> None:
        if by not in ("info", "observation"):
            raise UserError(f"by must be 'info' or 'observation'; got {by!r}")
        self.by, self.ending, self.start = by, ending, action_start
        value = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        mask = gym.spaces.MultiBinary(num_actions)
        self.observation_space = value if by == "info" else gym.spaces.Dict(action_mask=mask, value=value)
        self.action_space = gym.spaces.Discrete(num_actions, start=action_start)
        self.value, self.mask = 1.0, np.ones(num_actions, np.bool_)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draws an observation and a mask."""
        super().reset(seed=seed)
        return self._drawn()

    def step(self, action: np.int64) -> Step:
        """Rewards an allowed action, and draws the next observation and mask."""
        index = int(action) - self.start
        if not self.mask[index]:
            raise AssertionError(f"action {action} is forbidden; allowed are {np.flatnonzero(self.mask).tolist()}")
        reward = self.value * (2.0 * index / (len(self.mask) - 1) - 1.0)
        over = bool(self.np_random.random() < self.ending)
        observation, info = self._drawn()
        return observation, reward, over, False, info

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`[-1]` and `[1]`, and the Q-values there `[2, A]`: of the allowed actions, and of the others were they so."""
        count = len(self.mask)
        rewards = 2.0 * np.arange(count) / (count - 1) - 1.0
        best = 0.0  # the expectation of the greatest reward that is allowed
        for sure, others in itertools.product(range(count), itertools.product((False, True), repeat=count - 1)):
            allowed = np.insert(others, sure, True)
            best += rewards[allowed].max() / (count * 2 ** (count - 1))
        goes_on = gamma * (1.0 - self.ending)
        following = goes_on * best / (1.0 - goes_on)
        return np.array([[-1.0], [1.0]], np.float32), np.stack([-rewards, rewards]) + following

    def _drawn(self) -> tuple[Any, dict[str, Any]]:
        draws = self.np_random.random(len(self.mask) + 2)
        self.value = 1.0 if draws[0] < 0.5 else -1.0
        self.mask = draws[2:] < 0.5
        self.mask[int(draws[1] * len(self.mask))] = True
        value, mask = np.array([self.value], np.float32), self.mask.astype(np.int8)
        return (value, {"action_mask": mask}) if self.by == "info" else ({"action_mask": mask, "value": value}, {})


class Signals(gym.Env[Any, np.int64]):
    """One step under an observation of many parts, each of which decides which action is right.

    A Dict of a Box of one number s, -1 or 1; a MultiDiscrete; a Tuple of a Discrete and a MultiBinary; and a Text that
    says nothing. Action `(dials + gear + lamp) mod 3`, all counted from 0, gives s, the others give -s.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration
    sizes = (2, 2, 2, 3, 2)  # of the sign, the two dials, the gear and the lamp

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            sign=gym.spaces.Box(-1.0, 1.0, (1,), np.float64),
            dials=gym.spaces.MultiDiscrete([2, 2], start=[0, 5]),
            panel=gym.spaces.Tuple((gym.spaces.Discrete(3, start=1), gym.spaces.MultiBinary(1))),
            note=gym.spaces.Text(8),
        )
        self.action_space = gym.spaces.Discrete(3)
        self.state: tuple[int, ...] = (0,) * len(self.sizes)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Draws every part."""
        super().reset(seed=seed)
        self.state = tuple(self.np_random.integers(self.sizes).tolist())
        return self._observation(), {}

    def step(self, action: np.int64) -> Step:
        """Ends the episode with its reward; the observation stays."""
        return self._observation(), self._reward(self.state, int(action)), True, False, {}

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """Every observation as a vector `[S, 9]`, sign, dials, gear and lamp, and the Q-values there `[S, 3]`."""
        vectors, q = [], []
        for state in itertools.product(*map(range, self.sizes)):
            sign, first, second, gear, lamp = state
            dials = [*np.eye(2)[first], *np.eye(2)[second]]
            vectors.append([2.0 * sign - 1.0, *dials, *np.eye(3)[gear], lamp])
            q.append([self._reward(state, action) for action in range(3)])
        return np.array(vectors, np.float32), np.array(q)

    @staticmethod
    def _reward(state: tuple[int, ...], action: int) -> float:
        sign = 2.0 * state[0] - 1.0
        return sign if action == sum(state[1:]) % 3 else -sign

    def _observation(self) -> dict[str, Any]:
        sign, first, second, gear, lamp = self.state
        return {
            "dials": np.array([first, 5 + second]),
            "note": "steady",
            "panel": (np.int64(1 + gear), np.array([lamp], np.int8)),
            "sign": np.array([2.0 * sign - 1.0]),
        }


class Dials(_Probe):
    """One step with an action of two components, `[-1, 2]` to `[1, 5]`; the observation o is -1 or 1.

    With i and j the components counted from 0, the reward is `o (2 i - j) / 4`: best is `[1, 2]` at 1, `[-1, 5]` at -1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.action_space: Any = gym.spaces.MultiDiscrete([3, 4], start=[-1, 2])

    def first(self) -> Observation:
        """-1 or 1."""
        return self._coin()

    def step(self, action: Any) -> Step:
        """Ends the episode with its reward."""
        first, second = action[0] + 1, action[1] - 2
        return self.observation.copy(), float(self.observation[0] * (2 * first - second) / 4.0), True, False, {}

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """`[-1]` and `[1]`, and the Q-values there `[2, 12]`, the first component varying slowest."""
        scores = np.array([(2 * first - second) / 4.0 for first in range(3) for second in range(4)])
        return np.array([[-1.0], [1.0]], np.float32), np.stack([-scores, scores])


class Catch(gym.Env[NDArray[np.uint8], np.int64]):
    """A ball falls, a paddle catches it: an image of 36 x 36 grey values that a convolutional network learns fast.

    The ball starts in a random column of the top row and falls a row a step; the paddle starts in the middle of the
    bottom row and goes left, stays or goes right (actions 0, 1, 2). When the ball is in the bottom row the episode
    ends, with reward 1 where the paddle is under it and -1 elsewhere. The best return is 1, a random policy's is
    `2 / cells - 1`.

    Args:
        cells: rows and columns; a divisor of 36 from 3 on. An episode has `cells - 1` steps.
        render_mode: `rgb_array` or nothing.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 5}  # noqa: RUF012 - Gymnasium's own

    def __init__(self, cells: int = 6, render_mode: str | None = None) -> None:
        if cells < 3 or 36 % cells:
            raise UserError(f"cells must be 3, 4, 6, 9, 12, 18 or 36; got {cells}")
        self.cells, self.render_mode = cells, render_mode
        self.observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self.ball_row, self.ball_column, self.paddle = 0, 0, cells // 2

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Drops a new ball."""
        super().reset(seed=seed)
        self.ball_row, self.ball_column, self.paddle = 0, int(self.np_random.integers(self.cells)), self.cells // 2
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Moves the paddle, then the ball."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.cells - 1)
        self.ball_row += 1
        over = self.ball_row == self.cells - 1
        reward = 0.0 if not over else 1.0 if self.paddle == self.ball_column else -1.0
        return self._image(), reward, over, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The image, four times as large and in three channels."""
        return None if self.render_mode is None else _enlarged(self._image(), 4).repeat(3, axis=2)

    def _image(self) -> NDArray[np.uint8]:
        """`[36, 36, 1]`: the ball white, the paddle grey."""
        grid = np.zeros((self.cells, self.cells, 1), np.uint8)
        grid[-1, self.paddle] = 128
        grid[self.ball_row, self.ball_column] = 255
        return _enlarged(grid, 36 // self.cells)


class RandomMDP(gym.Env[Observation, np.int64]):
    """A random tabular decision process, whose states are shown one-hot and whose Q-values can be computed.

    Args:
        num_states: S.
        num_actions: A.
        mdp_seed: which process; the seed of a reset only decides what happens in it.
        ending: the chance that a step ends the episode.

    Attributes:
        transitions: `[S, A, S]`, chances of the next state when the episode goes on.
        rewards: `[S, A]`, from -1 to 1, in multiples of 1/64, exact in float32.
        ending: the chance that a step ends the episode.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(self, num_states: int = 6, num_actions: int = 3, mdp_seed: int = 0, ending: float = 0.1) -> None:
        random = np.random.default_rng(mdp_seed)
        self.transitions = random.dirichlet(np.full(num_states, 0.3), (num_states, num_actions))
        self.rewards = random.integers(-64, 65, (num_states, num_actions)) / 64.0
        self.ending = ending
        self.observation_space = gym.spaces.Box(0.0, 1.0, (num_states,), np.float32)
        self.action_space = gym.spaces.Discrete(num_actions)
        self.state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins in a random state."""
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(len(self.rewards)))
        return self._observation(), {}

    def step(self, action: np.int64) -> Step:
        """Draws the next state and whether the episode ends there."""
        reward = float(self.rewards[self.state, action])
        self.state = int(self.np_random.choice(len(self.rewards), p=self.transitions[self.state, action]))
        return self._observation(), reward, bool(self.np_random.random() < self.ending), False, {}

    def exact_q(self, gamma: float) -> tuple[Observation, NDArray[np.float64]]:
        """Every observation `[S, S]`, and the Q-values there `[S, A]`, by value iteration to 1e-12."""
        q = np.zeros_like(self.rewards)
        while True:
            following = self.rewards + gamma * (1.0 - self.ending) * self.transitions @ q.max(axis=1)
            if np.abs(following - q).max() < 1e-12:
                return np.eye(len(self.rewards), dtype=np.float32), following
            q = following

    def _observation(self) -> Observation:
        observation = np.zeros(len(self.rewards), np.float32)
        observation[self.state] = 1.0
        return observation


def _enlarged(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """`[H, W, C]` with every pixel `factor` times as wide and as high."""
    return image.repeat(factor, axis=0).repeat(factor, axis=1)
