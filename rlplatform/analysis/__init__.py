"""What can be said from finished episodes: robust averages, confidence intervals, comparisons, tables of returns.

Numbers and files that runs have written come in; no TensorFlow, no environment and no agent may.
"""

from rlplatform.analysis.retained import Contest, Retained, contests, retention
from rlplatform.analysis.savings import Saving, savings, savings_table
from rlplatform.analysis.scores import Aggregate, Row, aggregates, as_table, rows
from rlplatform.analysis.statistics import (
    Comparison,
    Interval,
    bootstrap,
    compare,
    interquartile_mean,
    mean,
    nested_bootstrap,
    stratified_bootstrap,
)

__all__ = [
    "Aggregate",
    "Comparison",
    "Contest",
    "Interval",
    "Retained",
    "Row",
    "Saving",
    "aggregates",
    "as_table",
    "bootstrap",
    "compare",
    "contests",
    "interquartile_mean",
    "mean",
    "nested_bootstrap",
    "retention",
    "rows",
    "savings",
    "savings_table",
    "stratified_bootstrap",
]
