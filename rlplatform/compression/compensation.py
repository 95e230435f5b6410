"""Rounding in which the weights that are still exact make up for those that are not any more.

Inputs of a layer go together: where one weight is rounded up, another one, of an input that is mostly large at the same
time, can take the difference back. Weights are rounded one input at a time, those of the strongest inputs first, and
each time the others move to where the outputs on calibration states change least (GPTQ, Frantar et al. 2023, after
Hassibi and Stork 1993). A converter that rounds to the nearest afterwards finds every weight where it leaves it.
"""

from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from rlplatform.compression.clustering import is_clustered
from rlplatform.compression.pruning import is_pruned

Array = np.ndarray[Any, Any]

LARGEST = 127  # int8's weights are symmetric.
DAMPING = 0.01  # of the mean square of inputs, added to each: what hardly ever occurs is not to move much
ROWS = 20_000  # inputs of a layer that are looked at
BATCH = 256
BLOCK = 128  # inputs after which the rest of the kernel is brought up to date


def compensated(model: Any, observations: Array, per_unit: bool) -> Any:
    """The network with kernels that int8 holds exactly, and biases that keep the mean of what each layer gives.

    Args:
        model: `[B, O...]` float32 to `[B, A]`, of any layers; the kernels of its Dense and Conv2D layers are rounded.
        observations: `[N, O...]` float32 as the model takes them, in random order.
        per_unit: whether each unit of a Dense has a scale of its own; each output of a Conv2D has.

    Returns:
        A new model; the one that is given where a kernel is clustered or pruned.
    """
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense | keras.layers.Conv2D)]
    kernels = [layer.get_weights()[0] for layer in layers]
    if any(is_clustered(kernel) or is_pruned(kernel) for kernel in kernels):
        return model
    made = keras.models.clone_model(model)
    made.set_weights(model.get_weights())
    for layer, kernel in zip(layers, kernels, strict=True):
        own = made.get_layer(layer.name)
        exact, given = (_inputs(each, of, observations) for each, of in ((model, layer), (made, own)))
        flat = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
        rounded = round_kernel(flat, given, per_unit or isinstance(layer, keras.layers.Conv2D))
        weights = [rounded.reshape(kernel.shape)]
        if layer.use_bias:
            weights.append(layer.get_weights()[1] + exact.mean(axis=0) @ flat - given.mean(axis=0) @ rounded)
        own.set_weights(weights)
    return made


def round_kernel(kernel: Array, inputs: Array, per_unit: bool) -> Array:
    """`[I, U]` float64 of whole numbers of steps, whose outputs on `inputs` are near those of `kernel`.

    Args:
        kernel: `[I, U]` float64.
        inputs: `[N, I]` float64.
        per_unit: whether each column has steps of its own, or the kernel has one size for all.
    """
    reach = np.abs(kernel).max(axis=0) if per_unit else np.full(kernel.shape[1], np.abs(kernel).max())
    step = np.where(reach > 0, reach / LARGEST, 1.0)
    # The step is what the converter makes of the greatest weight, so that one stays.
    ends = (np.abs(kernel) == reach) & (reach > 0)
    steps = kernel / step
    power = inputs.T @ inputs
    strength = np.diag(power).copy()
    silent = strength == 0  # Nothing is known of them: they are rounded to the nearest.
    damping = DAMPING * strength[~silent].mean() if not silent.all() else 1.0
    power[np.diag_indices_from(power)] += np.where(silent, 1.0, damping)
    order = np.argsort(-strength, kind="stable")
    # Row i: how the inputs from i on move with the error of i, all before being fixed.
    spread = np.linalg.cholesky(np.linalg.inv(power[np.ix_(order, order)])).T
    left, ends = steps[order], ends[order]
    whole = np.empty_like(left)
    for start in range(0, len(left), BLOCK):
        stop = min(start + BLOCK, len(left))
        errors = np.empty((stop - start, left.shape[1]))
        for row in range(start, stop):
            nearest = np.clip(np.rint(left[row]), -LARGEST, LARGEST)
            whole[row] = np.where(ends[row], steps[order[row]], nearest)
            error = (left[row] - whole[row]) / spread[row, row]
            left[row + 1 : stop] -= np.outer(spread[row, row + 1 : stop], error)
            errors[row - start] = error
        left[stop:] -= spread[start:stop, stop:].T @ errors
    back = np.empty_like(whole)
    back[order] = np.rint(whole)
    return back * step


def _inputs(model: Any, layer: Any, observations: Array) -> Array:
    """`[N, I]` float64: what a layer multiplies its kernel with, on no more than `ROWS` places."""
    places = int(np.prod(layer.output.shape[1:-1]))
    seen = observations[: -(-ROWS // places)]
    before = keras.Model(model.input, layer.input)
    batches = [seen[start : start + BATCH] for start in range(0, len(seen), BATCH)]
    features = np.concatenate([np.asarray(before(batch, training=False)) for batch in batches])
    if isinstance(layer, keras.layers.Conv2D):
        features = tf.image.extract_patches(
            features,
            [1, *layer.kernel_size, 1],
            [1, *layer.strides, 1],
            [1, *layer.dilation_rate, 1],
            layer.padding.upper(),
        ).numpy()
    return features.reshape(-1, features.shape[-1])[:ROWS].astype(np.float64)
