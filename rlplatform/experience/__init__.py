"""Experience: what was lived through, where it is kept, and how transitions are drawn from it.

Blocks come in from collectors, batches go out to updates. Knows no environment, no network and no algorithm.
"""

from rlplatform.experience.block import Batch, Block
from rlplatform.experience.replay import Replay
from rlplatform.experience.returns import Return, n_step_return, stack_rows
from rlplatform.experience.sequences import RecurrentBlock, SequenceReplay, Sequences

__all__ = [
    "Batch",
    "Block",
    "RecurrentBlock",
    "Replay",
    "Return",
    "SequenceReplay",
    "Sequences",
    "n_step_return",
    "stack_rows",
]
