"""What every agent has: the network that acts, its optimiser, the statistics of what it met, and its state."""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.agents import networks
from rlplatform.agents.freezing import freeze
from rlplatform.agents.normalization import Normalization
from rlplatform.agents.optimizer import Adam
from rlplatform.agents.pruning import Pruning
from rlplatform.config import Config
from rlplatform.experience import Block


class Agent(tf.Module):
    """The part of an agent that is no algorithm. An algorithm adds `update`, and the variables that it has besides.

    Args:
        name: of the module.
        config: the run's.
        observation_shape: what the networks see, `[S...]`, frames stacked.
        observation_dtype: `uint8` or `float32`.
        num_actions: A.

    Attributes:
        streams: of random numbers in one update.
        pruning: what makes weights zero while the network learns; None where nothing does.
    """

    streams = 1

    def __init__(
        self, name: str, config: Config, observation_shape: tuple[int, ...], observation_dtype: str, num_actions: int
    ) -> None:
        super().__init__(name=name)
        self._config, self._seed = config, config.seed
        self._build = (config, observation_shape, observation_dtype, num_actions)
        self.online = networks.build(*self._build, training=True)
        shares = freeze(self.online, config)
        self.pruning = Pruning(self.online, config.prune) if config.prune.final_sparsity else None
        self.optimizer = Adam(
            self.online.trainable_variables,
            config.optimizer.epsilon,
            config.optimizer.max_gradient_norm,
            shares,
            None if self.pruning is None else self.pruning.mask,
        )
        self.normalization = Normalization(config, self.online)
        self.updates = tf.Variable(0, dtype=tf.int64, trainable=False, name="updates")

    @property
    def has_convolutions(self) -> bool:
        """Whether the network convolves: XLA on CPU runs a convolution many times slower inside a while loop."""
        return any(isinstance(layer, keras.layers.Conv2D) for layer in self.online.layers)

    def policy_network(self) -> Any:
        """A network of its own, `[B, S...]` to `[B, A]` greedy Q-values, with the online network's weights of now."""
        network = networks.build(*self._build)
        network.set_weights(self.online.get_weights())
        return network

    def begin_with(self, weights: list[np.ndarray]) -> None:
        """Puts other first weights into the online network, in the order of its `get_weights()`."""
        self.online.set_weights(weights)

    def observe(self, block: Block) -> None:
        """Traced: takes a new block into the statistics that observations and rewards are normalised by."""
        self.normalization.update(block)

    # --- pruning --------------------------------------------------------------------------------------------------

    @property
    def is_pruned(self) -> bool:
        """Whether the network has all the zeros that it is to have in the end; true where it is to have none."""
        return self.pruning is None or self.pruning.is_complete

    def prune(self, done: float) -> bool:
        """Between two calls of `learn`: makes more weights zero where that is due, and says whether it has.

        Args:
            done: share of the run's env steps that have been learned from.
        """
        if self.pruning is None:
            return False
        updates = int(self.updates.numpy())
        if not self.pruning.is_due(done, updates - self._config.training.gradient_steps, updates):
            return False
        self.pruning.choose(done, self.online.trainable_variables)
        for network in self._networks():
            self.pruning.clear(network.trainable_variables)
        self.optimizer.forget_masked()
        return True

    def _networks(self) -> list[Any]:
        """All networks with weights of their own."""
        return [self.online]

    # --- random numbers -------------------------------------------------------------------------------------------

    def _stream(self, index: int) -> tf.Tensor:
        """Traced: [2] int32, the seed of one of this update's streams of random numbers.

        The second number is below -1: what is drawn from the replay has those from -1 on.
        """
        update = tf.cast(self.updates % 2**28, tf.int32)
        return tf.stack([tf.constant(self._seed, tf.int32), -2 - index - self.streams * update])

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def _groups(self) -> dict[str, Any]:
        """The variables, by the name of what holds them."""
        groups = {
            "online": self.online.variables,
            # The mask is the optimiser's too, but stands below.
            "optimizer": [self.optimizer.first_moment, self.optimizer.second_moment, self.optimizer.steps],
            "normalization": self.normalization.own_variables,
        }
        return groups if self.pruning is None else groups | {"pruning": self.pruning.variables}

    def _named_variables(self) -> dict[str, Any]:
        named = {
            f"{group}/{index}": variable
            for group, variables in self._groups().items()
            for index, variable in enumerate(variables)
        }
        return named | {"updates": self.updates}

    def state(self) -> dict[str, np.ndarray]:
        """Every variable by name."""
        return {name: variable.numpy() for name, variable in self._named_variables().items()}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Puts back what `state` gave."""
        for name, variable in self._named_variables().items():
            variable.assign(state[name])
