"""Measures what the platform does: speed, returns, what compression keeps and transfer saves. Files of raw results.

Sees everything but the command line's other commands; nothing else may need it. Each benchmark is a module with a
function `measure`; what they need is loaded only when one is run.
"""

from rlplatform.benchmarks.command import add

__all__ = ["add"]
