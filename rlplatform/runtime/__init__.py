"""Runs a policy bundle on a device: numpy and ai-edge-litert, nothing else.

Nothing of ours and no TensorFlow may be imported here; the folder works when it is copied out and renamed.
"""

from .errors import BundleError, ObservationError
from .frames import FrameStack
from .graph import open_graph
from .manifest import FORMAT, FORMAT_VERSION, MANIFEST, digest, read_file, read_manifest
from .memory import Decision
from .policy import Policy

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "MANIFEST",
    "BundleError",
    "Decision",
    "FrameStack",
    "ObservationError",
    "Policy",
    "digest",
    "open_graph",
    "read_file",
    "read_manifest",
]
