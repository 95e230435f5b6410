"""A recurrent layer after algebra: its input kernel has become a Dense before it, and what remembers is left."""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from rlplatform.agents.recurrent import GATES, gru_step, lstm_step


@keras.utils.register_keras_serializable(package="rlplatform")
class Cell(keras.layers.Layer):
    """One step of an LSTM or a GRU from what its inputs add to the gates: products, sigmoid and tanh, no more.

    Args:
        kind: `lstm` or `gru`.
        units: U.
    """

    def __init__(self, kind: str, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kind, self.units = kind, units

    @property
    def state_size(self) -> int:
        """H, how many numbers it remembers."""
        return 2 * self.units if self.kind == "lstm" else self.units

    def build(self, input_shape: Any) -> None:
        """Makes `kernel` `[U, G * U]` and, for a GRU, the `bias` `[3U]` beside its product."""
        gates = GATES[self.kind] * self.units
        self.kernel = self.add_weight(name="kernel", shape=(self.units, gates))
        if self.kind == "gru":
            self.bias = self.add_weight(name="bias", shape=(gates,), initializer="zeros")
        super().build(input_shape)

    def call(self, inputs: Any) -> tf.Tensor:
        """`[B, G * U]` and the state `[B, H]` to the state after, `[B, H]`."""
        projected, state = inputs
        if self.kind == "lstm":
            return lstm_step(projected, state, self.kernel)
        return gru_step(projected, state, self.kernel, self.bias)

    def get_config(self) -> dict[str, Any]:
        """See Keras."""
        return {**super().get_config(), "kind": self.kind, "units": self.units}


def of_recurrent(layer: Any) -> Cell:
    """The cell of a `Recurrent` layer, without its input kernel and the bias beside that."""
    cell = Cell(layer.kind, layer.units, name=layer.name)
    cell.build(None)
    _, kernel, bias = layer.get_weights()
    cell.set_weights([kernel, bias[1]] if layer.kind == "gru" else [kernel])
    return cell
