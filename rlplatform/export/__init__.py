"""From a run to a verified bundle: what leaves the platform, and how it lies on the disk.

Decides what a bundle holds. How networks are folded, converted and examined belongs to compression, and parsing of
arguments to the command line.
"""

from rlplatform.compression import Verification, verify
from rlplatform.export.bundle import read
from rlplatform.export.compressing import compress
from rlplatform.export.exporting import FORMATS, Student, export

__all__ = ["FORMATS", "Student", "Verification", "compress", "export", "read", "verify"]
