"""Recurrent cells and the layer that runs them: what a Q-network remembers of an episode beside what it sees now."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from rlplatform.config import NetworkConfig

GATES = {"lstm": 4, "gru": 3}


def state_size(config: NetworkConfig) -> int:
    """H, how many numbers a network remembers: an LSTM's output and its cell, a GRU's output; 0 without a memory."""
    return {"lstm": 2, "gru": 1}.get(config.recurrent, 0) * config.recurrent_units


def lstm_step(projected: tf.Tensor, state: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Traced: one step of a long short-term memory (Hochreiter & Schmidhuber 1997; forget gate of Gers et al. 2000).

    Args:
        projected: [B, 4U] float32, what the inputs and the bias add to the gates: input, forget, cell and output.
        state: [B, 2U] float32, output and cell.
        kernel: [U, 4U] float32, from the last output to the gates.

    Returns:
        [B, 2U] float32, the new state.
    """
    output, cell = tf.split(state, 2, axis=1)
    into, keep, candidate, out = tf.split(projected + tf.matmul(output, kernel), 4, axis=1)
    cell = tf.sigmoid(keep) * cell + tf.sigmoid(into) * tf.tanh(candidate)
    return tf.concat([tf.sigmoid(out) * tf.tanh(cell), cell], axis=1)


def gru_step(projected: tf.Tensor, state: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Traced: one step of a gated recurrent unit, in the form of Cho et al. 2014's first version.

    That form resets after the product with the kernel, which is then one product for all gates.

    Args:
        projected: [B, 3U] float32, what the inputs and their bias add to the gates: update, reset and candidate.
        state: [B, U] float32, the last output.
        kernel: [U, 3U] float32, from the last output to the gates.
        bias: [3U] float32, beside that product.

    Returns:
        [B, U] float32, the new state.
    """
    update, reset, candidate = tf.split(projected, 3, axis=1)
    own_update, own_reset, own_candidate = tf.split(tf.matmul(state, kernel) + bias, 3, axis=1)
    kept = tf.sigmoid(update + own_update)
    return kept * state + (1.0 - kept) * tf.tanh(candidate + tf.sigmoid(reset + own_reset) * own_candidate)


@keras.utils.register_keras_serializable(package="rlplatform")
class Recurrent(keras.layers.Layer):
    """An LSTM or a GRU over features: one step of each item where it acts, many steps of each where it learns.

    Weights are laid out as in Keras's layers of the same names. All states come out, so that whoever unrolls a sequence
    can go on from any row of it; `Output` takes from them what the layers after see.

    Args:
        kind: `lstm` or `gru`.
        units: U.
    """

    def __init__(self, kind: str, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.units = kind, units

    def build(self, input_shape: Any) -> None:
        """Makes `kernel` `[F, G * U]`, `recurrent_kernel` `[U, G * U]` and `bias` `[4U]` or `[2, 3U]`."""
        gates = GATES[self.kind] * self.units
        shape = (int(input_shape[0][-1]), gates)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer="glorot_uniform")
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, gates), initializer="orthogonal"
        )
        lstm = self.kind == "lstm"
        self.bias = self.add_weight(
            name="bias", shape=(gates,) if lstm else (2, gates), initializer=self._remembering if lstm else "zeros"
        )
        super().build(input_shape)

    def _remembering(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        """1 for the forget gate and 0 elsewhere (Jozefowicz et al. 2015): an LSTM remembers from the start."""
        return tf.repeat(tf.constant([0.0, 1.0, 0.0, 0.0], dtype), self.units)

    def call(self, inputs: Any) -> tf.Tensor:
        """One step, or one for each row of a sequence.

        Args:
            inputs: features `[B, F]` and state `[B, H]`; or features `[L * B, F]`, time-major, the state `[B, H]`
                before the first row, and `first` `[L, B]` bool: there an episode begins, and the state is forgotten.

        Returns:
            `[B, H]` or `[L * B, H]` float32, the state after each row.
        """
        features, state, *rest = inputs
        projected = tf.matmul(features, self.kernel) + (self.bias if self.kind == "lstm" else self.bias[0])
        if not rest:
            return self._step(projected, state)
        (first,) = rest
        rows, items = tf.unstack(tf.shape(first))
        projected = tf.reshape(projected, [rows, items, GATES[self.kind] * self.units])

        def step(state: tf.Tensor, row: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            projected, begins = row
            return self._step(projected, tf.where(begins[:, None], 0.0, state))

        states = tf.scan(step, (projected, first), state)
        return tf.reshape(states, [-1, state.shape[1]])

    def _step(self, projected: tf.Tensor, state: tf.Tensor) -> tf.Tensor:
        if self.kind == "lstm":
            return lstm_step(projected, state, self.recurrent_kernel)
        return gru_step(projected, state, self.recurrent_kernel, self.bias[1])

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "kind": self.kind, "units": self.units}


@keras.utils.register_keras_serializable(package="rlplatform")
class Output(keras.layers.Layer):
    """What a recurrent layer shows of its state: the first U numbers, `[B, H]` to `[B, U]`.

    Args:
        units: U.
    """

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def call(self, state: tf.Tensor) -> tf.Tensor:
        """`[B, H]` to `[B, U]`."""
        return state[:, : self.units]

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "units": self.units}
