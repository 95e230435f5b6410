"""From a trained network to small files that still play: canonical form, calibration, conversion, verification.

Knows networks, files and how they play. How files are laid out in a bundle, and the command line, may not come in.
"""

from rlplatform.compression.agreement import Agreement, gaps
from rlplatform.compression.calibration import States, mixture, visited
from rlplatform.compression.canonical import Canonical, canonical
from rlplatform.compression.conversion import TARGETS, Files, Scaling, Target, convert, save
from rlplatform.compression.gates import Gate
from rlplatform.compression.reference import GOLDEN, NETWORK, Golden, open_bundle
from rlplatform.compression.verification import Progress, Row, Verification, machine, verify

__all__ = [
    "GOLDEN",
    "NETWORK",
    "TARGETS",
    "Agreement",
    "Canonical",
    "Files",
    "Gate",
    "Golden",
    "Progress",
    "Row",
    "Scaling",
    "States",
    "Target",
    "Verification",
    "canonical",
    "convert",
    "gaps",
    "machine",
    "mixture",
    "open_bundle",
    "save",
    "verify",
    "visited",
]
