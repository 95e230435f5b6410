"""From a trained network to small files that still play: canonical form, calibration, conversion, verification.

Knows networks, files and how they play. How files are laid out in a bundle, and the command line, may not come in.
"""

from rlplatform.compression import inspection
from rlplatform.compression.agreement import Agreement, gaps
from rlplatform.compression.calibration import States, mixture, visited
from rlplatform.compression.canonical import Canonical, canonical
from rlplatform.compression.clustering import cluster
from rlplatform.compression.conversion import QUANTISATIONS, TARGETS, Files, Quantisation, Scaling, Target, convert, save
from rlplatform.compression.gates import Gate
from rlplatform.compression.pruning import prune
from rlplatform.compression.reference import GOLDEN, NETWORK, STUDENT, Golden, open_bundle
from rlplatform.compression.search import (
    Candidate,
    Distillery,
    Teacher,
    act_of_network,
    best_of,
    parse_budget,
    smallest,
)
from rlplatform.compression.verification import Progress, Row, Verification, machine, verify

__all__ = [
    "GOLDEN",
    "NETWORK",
    "QUANTISATIONS",
    "STUDENT",
    "TARGETS",
    "Agreement",
    "Candidate",
    "Canonical",
    "Distillery",
    "Files",
    "Gate",
    "Golden",
    "Progress",
    "Quantisation",
    "Row",
    "Scaling",
    "States",
    "Target",
    "Teacher",
    "Verification",
    "act_of_network",
    "best_of",
    "canonical",
    "cluster",
    "convert",
    "gaps",
    "inspection",
    "machine",
    "mixture",
    "open_bundle",
    "parse_budget",
    "prune",
    "save",
    "smallest",
    "verify",
    "visited",
]
