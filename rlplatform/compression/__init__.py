"""From a trained network to small files that still play: canonical form, calibration, conversion, verification.

Knows networks, files and how they play. How files are laid out in a bundle, and the command line, may not come in.
"""

from rlplatform.compression import aware, inspection, micro, onnx_file
from rlplatform.compression.agreement import Agreement, hard_half
from rlplatform.compression.calibration import States, mixture, visited
from rlplatform.compression.canonical import Canonical, canonical
from rlplatform.compression.clustering import cluster
from rlplatform.compression.conversion import (
    QUANTISATIONS,
    TARGETS,
    Files,
    Quantisation,
    Scaling,
    Target,
    convert,
    convert_all,
    refuses_int16x8,
    refuses_memory,
    save,
    static_form,
)
from rlplatform.compression.gates import Gate
from rlplatform.compression.labels import Labels, gather, label
from rlplatform.compression.normalize import Normalize
from rlplatform.compression.onnx_file import ONNX_FILE
from rlplatform.compression.pruning import prune
from rlplatform.compression.reference import GOLDEN, NETWORK, STUDENT, Golden, open_bundle
from rlplatform.compression.retraining import falls_short, retrain
from rlplatform.compression.rounding import rounded
from rlplatform.compression.search import (
    Candidate,
    Distillery,
    Teacher,
    act_of_network,
    best_of,
    of_budget,
    parse_budget,
    smallest,
)
from rlplatform.compression.sequences import golden_sequences
from rlplatform.compression.verification import Progress, Row, Verification, machine, verify

__all__ = [
    "GOLDEN",
    "NETWORK",
    "ONNX_FILE",
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
    "Labels",
    "Normalize",
    "Progress",
    "Quantisation",
    "Row",
    "Scaling",
    "States",
    "Target",
    "Teacher",
    "Verification",
    "act_of_network",
    "aware",
    "best_of",
    "canonical",
    "cluster",
    "convert",
    "convert_all",
    "falls_short",
    "gather",
    "golden_sequences",
    "hard_half",
    "inspection",
    "label",
    "machine",
    "micro",
    "mixture",
    "of_budget",
    "onnx_file",
    "open_bundle",
    "parse_budget",
    "prune",
    "refuses_int16x8",
    "refuses_memory",
    "retrain",
    "rounded",
    "save",
    "smallest",
    "static_form",
    "verify",
    "visited",
]
