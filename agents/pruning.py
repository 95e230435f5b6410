"""Pruning while learning: the smallest weights of each kernel become zero, more and more of them, and stay zero.

The mask is a variable of the compiled program, which it costs one product in each update. Which weights it takes is
decided on the host, between two calls of `learn`: a million weights take tens
of milliseconds there, now and then.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

from rlplatform.config import PruneConfig
from rlplatform.errors import UserError

Array = np.ndarray[Any, Any]
K = TypeVar("K")

FIRST_CONVOLUTION = (
    0.5  # Share of its weights that the first convolution keeps at least: it is small, and all see by it.
)


class Kernel(NamedTuple):
    """One kernel among a network's trainable variables.

    Attributes:
        place: where it stands among them.
        sigma: where the size of its noise stands, which is zero wherever the kernel is; None without noise.
        size: how many weights it has.
        zeros: how many of them are zero in the end.
    """

    place: int
    sigma: int | None
    size: int
    zeros: int


class Pruning(tf.Module):
    """Gradual magnitude pruning (Zhu & Gupta 2017) of all kernels while they learn, as Graesser et al. 2022 do it.

    Kernels of dense, convolutional and recurrent layers are pruned, output layers among them; biases and LayerNorm are
    not. What is zero once stays zero, in all networks.

    Args:
        network: the online network.
        config: how much, when, and how it is shared among layers.

    Attributes:
        mask: [P] float32 over all trainable variables, 0 where a weight is pruned.
        zeros: [] int64, how many weights of kernels are pruned.

    Raises:
        UserError: the first convolution alone would keep more than the network may.
    """

    def __init__(self, network: Any, config: PruneConfig) -> None:
        super().__init__(name="pruning")
        self._config = config
        self._shapes = [tuple(variable.shape) for variable in network.trainable_variables]
        found = _kernels(network)
        shapes = {place: self._shapes[place] for place in found}
        shares = layer_sparsities(shapes, config.final_sparsity, config.distribution, _least_kept(shapes, config))
        self._kernels = []
        for place, sigma in found.items():
            size = math.prod(shapes[place])
            self._kernels.append(Kernel(place, sigma, size, min(round(shares[place] * size), size - 1)))
        self.mask = tf.Variable(tf.ones(sum(map(math.prod, self._shapes))), trainable=False, name="mask")
        self.zeros = tf.Variable(0, dtype=tf.int64, trainable=False, name="zeros")

    @property
    def is_complete(self) -> bool:
        """Whether as many weights are zero as are to be in the end."""
        return int(self.zeros.numpy()) >= sum(kernel.zeros for kernel in self._kernels)

    def is_due(self, done: float, before: int, updates: int) -> bool:
        """Whether more weights become zero now.

        Args:
            done: share of the run's env steps.
            before: updates before the last call of `learn`.
            updates: updates now.
        """
        if done < self._config.begin or self.is_complete:
            return False
        return done >= self._config.end or updates // self._config.interval > before // self._config.interval

    def choose(self, done: float, variables: Sequence[Any]) -> None:
        """Puts the smallest weights into the mask, as many as are to be zero by now.

        Args:
            done: share of the run's env steps.
            variables: the online network's trainable ones.
        """
        grown, masks = growth(done, self._config.begin, self._config.end), self._split()
        for kernel in self._kernels:
            kept = without_smallest(variables[kernel.place].numpy(), masks[kernel.place], round(grown * kernel.zeros))
            masks[kernel.place] = kept
            if kernel.sigma is not None:
                masks[kernel.sigma] = kept
        self.mask.assign(np.concatenate([mask.ravel() for mask in masks]).astype(np.float32))
        self.zeros.assign(sum(int(np.sum(~masks[kernel.place])) for kernel in self._kernels))

    def clear(self, variables: Sequence[Any]) -> None:
        """Makes the masked weights of a network zero; `variables` are its trainable ones."""
        for variable, mask in zip(variables, self._split(), strict=True):
            if not mask.all():
                variable.assign(np.where(mask, variable.numpy(), np.float32(0.0)))

    def sparsity(self, variables: Sequence[Any]) -> float:
        """The share of zeros in the kernels of a network, counted; `variables` are its trainable ones."""
        zeros = sum(int(np.sum(variables[kernel.place].numpy() == 0.0)) for kernel in self._kernels)
        return zeros / sum(kernel.size for kernel in self._kernels)

    def target(self, done: float) -> float:
        """The share of zeros that the schedule asks for; `done` is the share of the run's env steps."""
        return self._config.final_sparsity * growth(done, self._config.begin, self._config.end)

    def _split(self) -> list[Array]:
        """The mask of each trainable variable, in its shape; bool, true where a weight is kept."""
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = np.split(self.mask.numpy() > 0.0, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def growth(done: float, begin: float, end: float) -> float:
    """How much of the final sparsity is there: `1 - (1 - t)^3`, t from 0 to 1 (Zhu & Gupta 2017, eq. 1, from zero).

    Args:
        done: where we are.
        begin: where it begins, below `end`.
        end: from where on it is 1.
    """
    return 1.0 - (1.0 - min(max((done - begin) / (end - begin), 0.0), 1.0)) ** 3


def without_smallest(values: Array, kept: Array, zeros: int) -> Array:
    """Which weights stay when the smallest go.

    Args:
        values: float32, of any shape.
        kept: bool, those that have not gone before; the others do not come back.
        zeros: how many have gone afterwards, unless more have gone before.

    Returns:
        Bool, of that shape.
    """
    result = kept.copy()
    left = np.flatnonzero(kept)
    going = zeros - (kept.size - len(left))
    if going > 0:
        smallest = np.argpartition(np.abs(values.ravel()[left]), going - 1)[:going]
        result.ravel()[left[smallest]] = False
    return result


def layer_sparsities(
    kernels: Mapping[K, tuple[int, ...]],
    sparsity: float,
    distribution: Literal["erk", "uniform"] = "erk",
    least_kept: Mapping[K, float] | None = None,
) -> dict[K, float]:
    """Each layer's share of zeros; over all layers, `1 - sparsity` of the weights are kept.

    After Erdos-Renyi-Kernel (Evci et al. 2020, section 3) small layers keep more: a share of their weights that is
    proportional to `(sum of the kernel's dimensions) / (their product)`, and at most 1.

    Args:
        kernels: shapes, by name.
        sparsity: over all of them.
        distribution: `erk`, or the same share for all.
        least_kept: the share that a layer keeps at least, by name; together they leave room for `sparsity`.
    """
    sizes = np.array([math.prod(shape) for shape in kernels.values()], np.float64)
    scores = np.ones(len(sizes))
    if distribution == "erk":
        scores = np.array([sum(shape) for shape in kernels.values()]) / sizes
    floors = np.array([(least_kept or {}).get(name, 0.0) for name in kernels])
    low, high = 0.0, 1.0 / scores.min()
    for _ in range(100):  # What is kept grows with the factor, so that halving finds it, to the last bit.
        factor = (low + high) / 2
        enough = np.clip(factor * scores, floors, 1.0) @ sizes >= (1.0 - sparsity) * sizes.sum()
        low, high = (low, factor) if enough else (factor, high)
    kept = np.clip(high * scores, floors, 1.0)
    return dict(zip(kernels, (1.0 - kept).tolist(), strict=True))


def _kernels(network: Any) -> dict[int, int | None]:
    """Where the kernels stand among a network's trainable variables, each with the place of its noise's size."""
    places = {id(variable): place for place, variable in enumerate(network.trainable_variables)}
    found = {}
    for module in network.submodules:
        for name in ("kernel", "recurrent_kernel"):
            kernel: Any = getattr(module, name, None)
            if id(kernel) in places and len(kernel.shape) > 1:
                found[places[id(kernel)]] = places.get(id(getattr(module, f"{name}_sigma", None)))
    return dict(sorted(found.items()))


def _least_kept(shapes: Mapping[int, tuple[int, ...]], config: PruneConfig) -> dict[int, float]:
    """What the first convolution keeps, if there is one."""
    first = next((place for place, shape in shapes.items() if len(shape) > 2), None)
    if first is None:
        return {}
    most = 1.0 - FIRST_CONVOLUTION * math.prod(shapes[first]) / sum(map(math.prod, shapes.values()))
    if config.final_sparsity > most:
        raise UserError(
            "the first convolution keeps half of its weights, so prune.final_sparsity may be at most "
            f"{math.floor(1000 * most) / 1000} here; got {config.final_sparsity}"
        )
    return {first: FIRST_CONVOLUTION}
