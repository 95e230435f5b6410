"""Training that takes a second, and jobs without processes: for tests of what stands around them."""

from rlplatform.errors import RunError, UserError
from rlplatform.workers import Done

QUICK = (
    "device=cpu",
    "network.hidden_units=[8]",
    "training.train_interval=16",
    "training.gradient_steps=2",
    "training.learning_starts=32",
    "training.batch_size=8",
    "replay.capacity=256",
    "evaluation.interval=64",
    "evaluation.episodes=2",
)
"""Settings of a run of a hundred steps."""


def run_here(jobs, processes, logs, answer):
    """`workers.run` without processes."""
    for job in jobs:
        try:
            result = job.function(*job.arguments, lambda message, job=job: answer(job, message))
        except (RunError, UserError) as error:
            yield Done(job, None, str(error))
        else:
            yield Done(job, result, None)
