"""How fast training is: fixed tasks, a clock that starts when learning has warmed up, and one line of numbers."""

import pathlib
import resource
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import rlplatform
from rlplatform import api, devices
from rlplatform.errors import UserError, nearest
from rlplatform.training import Callback, RunControl

# DQN at CleanRL's settings: one update of batch 128 every 10 env steps, whatever the number of environments.
_CARTPOLE = {
    "network.hidden_units": [120, 84],
    "optimizer.learning_rate": 2.5e-4,
    "training.batch_size": 128,
    "training.learning_starts": 1_000,
    "training.train_interval": 10,
    "training.gradient_steps": 1,
    "replay.capacity": 10_000,
    "agent.double": "false",
    "agent.n_step": 1,
    "agent.normalize_rewards": "false",
    "agent.huber_delta": "inf",
    "agent.target_update_interval": 50,
    "agent.tau": 1.0,
    "exploration.epsilon": '{kind = "linear", start = 1.0, end = 0.05, fraction = 0.5}',
}
# DQN of Mnih et al. 2015 at the settings of today's libraries: one update of batch 32 every 4 env steps.
_PONG = {
    "environment.frame_stack": 4,
    "environment.kwargs": "{noop_max = 30, use_fire_reset = true, episodic_life = true}",
    "network.torso": "nature",
    "optimizer.learning_rate": 1e-4,
    "training.batch_size": 32,
    "training.learning_starts": 200,
    "training.train_interval": 4,
    "training.gradient_steps": 1,
    "replay.capacity": 10_000,
    "agent.double": "false",
    "agent.target_update_interval": 250,
    "exploration.epsilon": '{kind = "linear", start = 1.0, end = 0.05, fraction = 0.1}',
    "logging.interval": 200,
}
_UNWATCHED = {"evaluation.interval": 0, "evaluation.episodes": 1, "checkpoint.interval": 0}
# By name: the environment, steps, steps before the clock starts, and settings.
TASKS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "cartpole": ("CartPole-v1", 40_000, 2_000, _CARTPOLE),
    "cartpole8": (
        "CartPole-v1",
        60_000,
        2_000,
        _CARTPOLE | {"environment.num_envs": 8, "training.train_interval": 80, "training.gradient_steps": 8},
    ),
    "pong": ("ALE/Pong-v5", 1_200, 600, _PONG),
}


class Stopwatch(Callback):
    """Times from the first row of metrics at or after `warm` env steps to the newest one."""

    def __init__(self, warm: int) -> None:
        self.warm = warm
        self.begun: tuple[float, int, int] | None = None
        self.newest = (0.0, 0, 0)
        self.mean_return: float | None = None

    def on_log(self, run: RunControl, row: Mapping[str, float]) -> None:
        """See `Callback`."""
        self.newest = (time.perf_counter(), run.step, run.updates)
        self.mean_return = row.get("train/return", self.mean_return)
        if self.begun is None and run.step >= self.warm:
            self.begun = self.newest


def measure(task: str, steps: int | None = None, seed: int = 1) -> dict[str, Any]:
    """Trains a task in a folder that is thrown away.

    Returns:
        env steps and updates a second since the warm-up, the mean return of the last 100 training episodes, the peak
        memory in MB, and the number of threads that one operation may use.

    Raises:
        UserError: there is no such task, or it is too short to be timed.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}; {nearest(task, TASKS)}")
    env_id, default_steps, warm, settings = TASKS[task]
    steps = steps or default_steps
    if steps < 2 * warm:
        raise UserError(f"{task} needs at least {2 * warm} steps, of which {warm} warm up; got {steps}")
    stopwatch = Stopwatch(warm)
    overrides = [f"{key}={value}" for key, value in (settings | _UNWATCHED).items()]
    with tempfile.TemporaryDirectory() as folder:
        api.train(
            env_id,
            preset="dqn",
            steps=steps,
            seed=seed,
            out=pathlib.Path(folder, "run"),
            overrides=overrides,
            callbacks=[stopwatch],
            progress=False,
        )
    assert stopwatch.begun is not None
    (begin, first_step, first_update), (end, last_step, last_update) = stopwatch.begun, stopwatch.newest
    seconds = end - begin
    return {
        "peer": "rlplatform",
        "version": rlplatform.__version__,
        "task": task,
        "env_steps": last_step - first_step,
        "seconds": round(seconds, 3),
        "env_steps_per_s": round((last_step - first_step) / seconds, 1),
        "updates": last_update - first_update,
        "updates_per_s": round((last_update - first_update) / seconds, 1),
        "mean_return_last_100": None if stopwatch.mean_return is None else round(stopwatch.mean_return, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "threads": devices.threads(),
    }
