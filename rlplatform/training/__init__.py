"""Training: the run, from the first step to the last checkpoint: collecting, learning, evaluating, logging, saving.

Knows agents, environments and experience; knows nothing of compression, export or the command line.
"""

from rlplatform.training.callbacks import (
    Callback,
    EarlyStopping,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    RunControl,
    StopOnReward,
)
from rlplatform.training.collectors import Episode, HostCollector
from rlplatform.training.evaluation import Act, Evaluation, check_filming, evaluate, greedy, random_actions, record
from rlplatform.training.learner import Learned, Learner
from rlplatform.training.loop import Loop, Outcome
from rlplatform.training.run import Best, Run

__all__ = [
    "Act",
    "Best",
    "Callback",
    "EarlyStopping",
    "Episode",
    "Evaluation",
    "HostCollector",
    "Learned",
    "Learner",
    "LearningRateScheduler",
    "Loop",
    "ModelCheckpoint",
    "Outcome",
    "ReduceLROnPlateau",
    "Run",
    "RunControl",
    "StopOnReward",
    "check_filming",
    "evaluate",
    "greedy",
    "random_actions",
    "record",
]
