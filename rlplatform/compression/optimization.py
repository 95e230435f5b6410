"""The door to tensorflow-model-optimization, which takes seconds to load and warns while it does."""

import functools
import importlib
import warnings
from typing import Any

import tf_keras as keras


@functools.cache
def load(module: str = "tensorflow_model_optimization") -> Any:
    """The package, or a module of it, imported at its first use; it still asks setuptools for what was distutils."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module(module)


def cluster_preserving(preserve_sparsity: bool) -> Any:
    """The scheme of quantisation-aware training that keeps clusters, and zeros if asked to; tfmot has no door to it."""
    room = f"{load().__name__}.python.core.quantization.keras.collab_opts.cluster_preserve"
    scheme = load(f"{room}.default_8bit_cluster_preserve_quantize_scheme")
    return scheme.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity)


def with_weights_of(model: Any, stripped: Any) -> Any:
    """A fresh copy of `model` with the weights of a network that was wrapped and stripped again, layer by layer.

    What the package strips has layers that were called more than once, which the canonical form leaves as they are.
    """
    copy = keras.models.clone_model(model)
    for layer in copy.layers:
        layer.set_weights(stripped.get_layer(layer.name).get_weights())
    return copy
