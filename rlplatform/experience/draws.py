"""Random numbers that follow from a seed alone: the same on every device, compiled or not.

TensorFlow's own stateless floats are not: XLA makes them of other bits of the same Philox counter than its kernels do,
and normal ones by another method. Whole numbers agree, so floats are made of them here.
"""

import math

import tensorflow as tf

BITS = 24  # of a float32's mantissa, the leading 1 included


def random_uniform(shape: list[int], seed: tf.Tensor) -> tf.Tensor:
    """Traced: float32 in [0, 1), multiples of 2 ** -24.

    Args:
        shape: of the result.
        seed: [2] int32.
    """
    bits = tf.random.stateless_uniform(shape, seed, minval=None, maxval=None, dtype=tf.int32, alg="philox")
    return tf.cast(tf.bitwise.bitwise_and(bits, 2**BITS - 1), tf.float32) * 2.0**-BITS


def random_normal(count: int, seed: tf.Tensor) -> tf.Tensor:
    """Traced: `[count]` float32 of the standard normal distribution (Box & Muller 1958, eq. 2), up to 5.8 in size.

    Args:
        count: how many.
        seed: [2] int32.
    """
    radius, angle = tf.unstack(random_uniform([2, count], seed))
    return tf.sqrt(-2.0 * tf.math.log(1.0 - radius)) * tf.cos(2.0 * math.pi * angle)
