"""What can be said from finished episodes: robust averages, confidence intervals, comparisons.

Numbers and files that runs have written come in; no TensorFlow, no environment and no agent may.
"""

from rlplatform.analysis.statistics import (
    Comparison,
    Interval,
    bootstrap,
    compare,
    interquartile_mean,
    mean,
)

__all__ = ["Comparison", "Interval", "bootstrap", "compare", "interquartile_mean", "mean"]
