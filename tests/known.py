"""Policies that are known by heart, as runs; and a backbone so small that it trains in a moment."""

import gymnasium as gym
import numpy as np
import tf_keras as keras

from rlplatform import envs
from rlplatform.agents import networks
from rlplatform.config import Config
from rlplatform.envs.memory import TMaze
from rlplatform.training import Best, Run

RULE = np.array([1.0, 3.0, 9.0, 7.0])  # Push to where RULE @ observation points: 500.0 on every CartPole episode.


def cartpole_run(path, env_id="CartPole-v1", frame_stack=1, action_start=0, offset=50.0):
    """A run whose best policy is RULE, as a network of two layers of 64 units and values around `offset`."""
    config = Config().replace(
        environment={"id": env_id, "frame_stack": frame_stack}, network={"hidden_units": [64, 64]}, seed=7
    )
    run = Run(path, config, envs.Spec((4,), "float32", 2, action_start))
    path.mkdir()
    run.create("0")
    rng = np.random.default_rng(0)
    right = np.arange(64) % 2 == 1  # Every other unit speaks for action 1.
    sign = np.where(right, 1.0, -1.0)
    first = RULE[:, None] * sign * rng.uniform(0.5, 1.5, 64)
    second = np.where(right[:, None] == right, rng.uniform(0.5, 1.5, (64, 64)), 0.0) / 32
    last = np.stack([~right, right], axis=1) * rng.uniform(0.5, 1.5, (64, 1)) / 32
    first = np.concatenate([np.zeros((4 * (frame_stack - 1), 64)), first])
    weights = [first, np.zeros(64), second, np.zeros(64), last, np.full(2, offset)]
    network = networks.build(config, run.observation_shape, "float32", 2)
    assert [weight.shape for weight in weights] == [weight.shape for weight in network.get_weights()]
    replayed = rng.uniform(-1, 1, (300, 4 * frame_stack)) * np.tile([2.4, 3.0, 0.2, 3.0], frame_stack)
    run.save_best(Best(12_345, 500.0, [weight.astype(np.float32) for weight in weights]), replayed.astype(np.float32))
    return run


class Signs(gym.Env):
    """Pays for saying in which direction the first number went, and on which side of its mean the second one is.

    Both are far from 0, and no frame alone says enough: whoever forgets a mean or turns the frames round is wrong.
    """

    STEPS = 20
    MEAN, SPREAD = np.array([20.0, -300.0]), np.array([40.0, 20.0])

    observation_space = gym.spaces.Box(-1_000.0, 1_000.0, (2,))
    action_space = gym.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._frame, self._step, self._rises = self._draw(), 0, None
        return self._frame.copy(), {}

    def step(self, action):
        says_up, says_high = divmod(int(action), 2)
        right = self._rises in (None, bool(says_up)) and says_high == (self._frame[1] > self.MEAN[1])
        last, self._step = self._frame, self._step + 1
        while abs(self._frame[0] - last[0]) < 6.0:
            self._frame = self._draw()
        self._rises = bool(self._frame[0] > last[0])
        return self._frame.copy(), float(right), self._step == self.STEPS, False, {}

    def _draw(self):
        share = self.np_random.uniform(-0.5, 0.5, 2)
        share[1] = np.copysign(max(abs(share[1]), 0.1), share[1])
        return (self.MEAN + share * self.SPREAD).astype(np.float32)


def signs_run(path):
    """A run whose best policy always says what is right: on the newest of two frames, normalised."""
    settings = {"hidden_units": [16], "normalize_observations": True}
    config = Config().replace(environment={"id": "Signs", "frame_stack": 2}, network=settings)
    run = Run(path, config, envs.spec_of(Signs()))
    path.mkdir()
    run.create("0")
    went, side = np.array([-1.0, 0.0, 1.0, 0.0]), np.array([0.0, 0.0, 0.0, 1.0])
    units = np.stack([went, -went, side, -side], axis=1)
    says = np.array([[-1, -1, 1, 1], [1, 1, -1, -1], [-1, 1, -1, 1], [1, -1, 1, -1]])  # what each unit speaks for
    gains = np.random.default_rng(0).uniform(0.5, 1.5, 16)
    first, last = np.tile(units, 4) * gains, np.tile(says, (4, 1)) / gains[:, None] / 4
    mean, spread = np.tile(Signs.MEAN, 2), np.tile(Signs.SPREAD, 2)
    weights = [mean, spread**2 / 12, first, np.zeros(16), last, np.full(4, 50.0)]
    network = networks.build(config, run.observation_shape, "float32", 4)
    assert [weight.shape for weight in weights] == [weight.shape for weight in network.get_weights()]
    replayed = mean + np.random.default_rng(1).uniform(-0.5, 0.5, (300, 4)) * spread
    run.save_best(Best(1, Signs.STEPS, [weight.astype(np.float32) for weight in weights]), replayed.astype(np.float32))
    return run


def tiny_backbone(shape, alpha):
    """A model with each kind of layer that a backbone may have: normalised convolutions, a residual sum."""
    image = keras.Input(shape)
    features = keras.layers.Conv2D(4, 3, 8, padding="same", use_bias=False, name="first")(image)
    features = skip = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(features))
    features = keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(features)
    features = keras.layers.ReLU(6.0)(keras.layers.BatchNormalization()(features))
    features = keras.layers.Conv2D(4, 1, name="project")(features)
    return keras.Model(image, keras.layers.Add()([skip, keras.layers.BatchNormalization()(features)]))


def save_weights(template, path, seed=0):
    """Writes the weights of a backbone as `tf_keras.applications` publishes them, normalised by what images give."""
    rng = np.random.default_rng(seed)
    for layer in template.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            scale, offset, mean, variance = layer.get_weights()
            drawn = [rng.uniform(0.5, 1.5, scale.shape), rng.uniform(-0.5, 0.5, offset.shape)]
            layer.set_weights([*drawn, mean, variance])
            layer.momentum = 0.0  # the statistics of the next batch alone
    template(rng.uniform(-1, 1, (32, *template.input_shape[1:])).astype(np.float32), training=True)
    template.save_weights(path)
    return path


def maze_run(path, kind="gru", length=3):
    """A run whose best policy remembers the sign of a TMaze up to the junction: every episode returns 1."""
    settings = {"recurrent": kind, "recurrent_units": 32, "hidden_units": [4, 8], "normalize_observations": True}
    environment = {"id": "rlplatform.envs.memory:TMaze", "kwargs": {"length": length}}
    config = Config().replace(environment=environment, network=settings)
    run = Run(path, config, envs.spec_of(TMaze(length)))
    path.mkdir()
    run.create("0")
    torso = np.array([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])  # what rises: the sign, against it, the junction
    rng = np.random.default_rng(0)
    signs, junctions = np.repeat([[1.0, 0.0], [0.0, 1.0]], 16, axis=1)  # Units that keep the sign, and that see.
    seen = np.array([1.0, 1.0, 0.0, 0.0])[:, None]
    replaced = 12.0 * seen * signs, 12.0 * junctions - 6.0  # A sign's unit is replaced when there is a sign to see.
    shown = 3.0 * (
        np.array([1.0, -1.0, 0.0, 0.0])[:, None] * signs + np.array([0.0, 0.0, 1.0, 0.0])[:, None] * junctions
    )
    if kind == "gru":
        kernel, gates = [-replaced[0], 0.0 * shown, shown], 3
        bias = np.stack([np.concatenate([-replaced[1], np.zeros(64)]), np.zeros(96)])
    else:
        kernel, gates = [replaced[0], -replaced[0], shown, 0.0 * shown], 4
        bias = np.concatenate([replaced[1], -replaced[1], np.zeros(32), np.full(32, 6.0)])
    shares = np.concatenate([rng.dirichlet(np.full(16, 5.0)), rng.dirichlet(np.full(16, 5.0))])
    one = 1.0 if kind == "gru" else np.tanh(1.0)  # What a unit shows when it is full.
    right = shares * (signs + junctions) / one
    left = shares * (junctions - signs) / one
    says = np.tile([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]], (4, 1)) / 4.0
    weights = [
        np.zeros(2),
        np.ones(2),
        torso,
        np.zeros(4),
        np.concatenate(kernel, axis=1),
        np.zeros((32, 32 * gates)),
        bias,
        np.tile(np.stack([right, left], axis=1), 4),
        np.full(8, -1.0),
        says,
        np.array([0.3, 0.0, 0.0]),
    ]
    network = networks.build(config, run.observation_shape, "float32", 3)
    assert [weight.shape for weight in weights] == [weight.shape for weight in network.get_weights()]
    observations = rng.integers(-1, 2, (50, 2)).astype(np.float32)
    run.save_best(Best(1, 1.0, [weight.astype(np.float32) for weight in weights]), observations)
    return run
