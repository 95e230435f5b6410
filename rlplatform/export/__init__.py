"""From a run to a verified bundle: what leaves the platform, how it lies on the disk, and how it is shown.

Decides what a bundle holds. How networks are folded, converted and examined belongs to compression, and parsing of
arguments to the command line.
"""

from rlplatform.compression import Verification, verify
from rlplatform.export.bundle import read
from rlplatform.export.exporting import FORMATS, export
from rlplatform.export.table import table, to_json

__all__ = ["FORMATS", "Verification", "export", "read", "table", "to_json", "verify"]
