"""Environments: made from a configuration, vectorised, seeded, described, stacked and snapshot.

Here belongs what turns a name into a running Gymnasium environment, and example environments. Nothing of agents,
training or TensorFlow may come in.
"""

from rlplatform.envs.adapter import Adapter, VectorAdapter
from rlplatform.envs.make import make, make_single
from rlplatform.envs.masks import mask_of, mask_row
from rlplatform.envs.naming import Factory, id_of, registered
from rlplatform.envs.seeding import reset, seeds
from rlplatform.envs.serial import SerialVectorEnv
from rlplatform.envs.snapshots import restore, snapshot
from rlplatform.envs.spaces import Spec, spec_of
from rlplatform.envs.stack import Stack

__all__ = [
    "Adapter",
    "Factory",
    "SerialVectorEnv",
    "Spec",
    "Stack",
    "VectorAdapter",
    "id_of",
    "make",
    "make_single",
    "mask_of",
    "mask_row",
    "registered",
    "reset",
    "restore",
    "seeds",
    "snapshot",
    "spec_of",
]
