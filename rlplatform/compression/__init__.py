"""From a trained network to small files that still play: canonical form, calibration, conversion, verification.

Knows networks and files. Nothing of the command line and of how a bundle is laid out on disk may come in.
"""

from rlplatform.compression.canonical import Canonical, canonical
from rlplatform.compression.conversion import Files, Scaling, convert

__all__ = ["Canonical", "Files", "Scaling", "canonical", "convert"]
