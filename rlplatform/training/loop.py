"""The training loop: collects one block while learning from the one before, and does what falls due in between."""

import contextlib
import math
import pathlib
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from rlplatform import devices, envs
from rlplatform.agents import make_actor
from rlplatform.agents.acting import split_weights, weight_shapes
from rlplatform.config import to_dict, to_toml
from rlplatform.envs.naming import Factory
from rlplatform.errors import RunError, UserError
from rlplatform.training import callbacks as callbacks_module
from rlplatform.training import schedules, shards, transfer
from rlplatform.training.callbacks import Callback
from rlplatform.training.collectors import Episode, HostCollector
from rlplatform.training.evaluation import Evaluation, evaluate, greedy, record
from rlplatform.training.learner import AnyBlock, Learned, Learner
from rlplatform.training.logs import Log
from rlplatform.training.run import Best, Run, seed_networks

Array = np.ndarray[Any, Any]
_OWN = ("collector", "pending", "episodes")  # what each worker has of its own
CALIBRATION = 1_024  # observations kept beside the best policy


class Outcome(NamedTuple):
    """How a session of training ended."""

    steps: int  # env steps of the run so far
    updates: int
    reason: str  # "finished", or why it stopped before its last step
    signal: int  # the signal that stopped it, 0 for none
    evaluation: Evaluation | None  # the newest one during training


class Loop:
    """One session of a run. It is also the `RunControl` that callbacks see.

    The order of one round, the same for every run of the same configuration: block k is learned from in a thread of its
    own, while block k + 1 is collected with the weights that learning from block k - 1 gave. Both are then waited for,
    so that nothing depends on which was faster. Between rounds nothing runs, and logs, evaluations, callbacks and
    checkpoints see one consistent state.

    Args:
        run: the run's folder and configuration; its spec is the environment's.
        env: the training environments.
        callbacks: called after those that the configuration names.
        factory: makes the environments for evaluation, where they have no id.
        resume: go on from the newest checkpoint.
        progress: show a bar on standard error.
        strategy: where to learn; by default what the configuration asks for. Where it has several workers, each runs
            this loop on its own part of the environments, and the first one, the chief, alone writes to the folder.
    """

    def __init__(
        self,
        run: Run,
        env: Any,
        *,
        callbacks: Sequence[Callback] = (),
        factory: Factory | None = None,
        resume: bool = False,
        progress: bool = True,
        strategy: Any = None,
    ) -> None:
        self._run, self._config, self._factory = run, run.config, factory
        seed_networks(run.config.seed)
        devices.make_deterministic()
        strategy = strategy or devices.strategy(run.config.device, run.config.replicas)
        self._learner = Learner(run.config, run.spec, strategy)
        self._replicas = replicas = self._learner.replicas
        self._policy = self._learner.agent.policy_network()  # its weights are set when it is saved
        self._collector = HostCollector(
            run.config, env, run.spec, make_actor(self._policy, run.config.seed), replicas.worker, replicas.workers
        )
        self._greedy = make_actor(self._policy)
        self._callbacks = [*callbacks_module.from_config(run.config.callbacks), *callbacks]
        self._checkpoints = run.checkpoints()
        self._acting = self._learner.weights()  # what the next block is collected with
        self.taken_over: list[transfer.Layer] = []
        self._pending: AnyBlock | None = None  # the newest block, not yet learned from
        self._learned_blocks = self._updates = 0
        self._stored_first = run.config.stored_blocks
        self._episodes: deque[Episode] = deque(maxlen=100)
        self._evaluation: Evaluation | None = None
        self._evaluated_at = -1
        self._reason, self._signal = "", 0  # why this worker wants to stop
        self._stops = ""  # why all of them do
        self.learning_rate_scale = 1.0
        self._best_return = -math.inf
        self._saved_step = -1
        saved = self._checkpoints.restore() if resume else None
        self._agree(-1 if saved is None else saved.step)
        if saved is None and run.config.transfer.source:
            self._begin()
        if saved is not None:
            self._load_state(saved.variables, saved.host)
            self._saved_step = saved.step
        if resume and (best := run.best()) is not None:
            self._best_return = best.mean_return
        self._scratch = None if replicas.is_chief else tempfile.TemporaryDirectory(prefix="rlplatform-")
        folder = run.path if self._scratch is None else pathlib.Path(self._scratch.name)
        self.log = Log(folder, run.config, append=resume, progress=progress)
        if resume:  # without a checkpoint, from step 0: what was logged since then comes again
            self.log.truncate_after(self.step)
        if saved is None:
            self._describe()

    def _agree(self, step: int) -> None:
        """Refuses to begin where workers would not do the same; `step` is that of the checkpoint each has found."""
        chief, *others = self._replicas.tell((to_dict(self._config), step))
        for worker, other in enumerate(others, 1):
            if other[0] != chief[0]:
                raise UserError(
                    f"worker {worker} was started with other settings than the chief; they must be the same"
                )
            if other[1] != chief[1]:
                raise UserError(
                    f"worker {worker} does not see the chief's newest checkpoint in {self._run.path}: the run's folder "
                    "must be on a file system that all workers share"
                )

    def _begin(self) -> None:
        """Takes layers over from another network, and the units in which its values are."""
        network = self._learner.agent.online
        self.taken_over = transfer.begin(network, self._config)
        self._learner.agent.begin_with(network.get_weights())
        if self.taken_over:
            self._learner.agent.normalization.begin_with(transfer.statistics(self._config, self.taken_over))
        self._acting = self._learner.weights()

    # --- what callbacks see ---------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Env steps that have been learned from."""
        return self._learned_blocks * self._block_size

    @property
    def updates(self) -> int:
        """Gradient updates so far."""
        return self._updates

    @property
    def scheduled_learning_rate(self) -> float:
        """What `optimizer.learning_rate` says at this step, before the scale."""
        return schedules.value(self._config.optimizer.learning_rate, self.step, self._config.training.total_steps)

    def stop(self, reason: str) -> None:
        """Ends the run after this round, with everything saved."""
        self._reason = self._reason or reason

    def save_network(self, path: pathlib.Path) -> None:
        """Writes the policy's network as a `.keras` file or a SavedModel folder, after the path's ending."""
        if self._replicas.is_chief:
            self._policy.set_weights(self._learner.agent.online.get_weights())
            self._policy.save(path)

    # --- the rounds -----------------------------------------------------------------------------------------------

    def train(self) -> Outcome:
        """Rounds until the last step, a callback's stop or a signal.

        Raises:
            RunError: the run has diverged, or a file could not be written; the checkpoints are as they were.
        """
        try:
            with self._stopping_on_signals(), ThreadPoolExecutor(1, thread_name_prefix="learner") as thread:
                for callback in self._callbacks:
                    callback.on_train_begin(self)
                self._rounds(thread)
                self._finish()
        finally:
            self.log.close()
            self._collector.close()
            if self._scratch is not None:
                self._scratch.cleanup()
        reason = self._stops or self._reason or "finished"
        return Outcome(self.step, self.updates, reason, self._signal, self._evaluation)

    def _rounds(self, thread: ThreadPoolExecutor) -> None:
        total = -(-self._config.training.total_steps // self._block_size)
        if self._pending is None and self._learned_blocks < total:
            self._pending = self._collect()
            # What the round after this one acts with, as if the run had never paused here.
            self._acting = self._learner.weights()
        self._clock = (time.perf_counter(), self.step, self.updates)
        self._agree_on_stopping()
        while self._pending is not None and not self._stops:
            entering = threading.Event()
            learning = thread.submit(self._learn, self._pending, entering.set)
            # Collecting holds Python's global lock nearly all the time: let the learner enter its program first.
            while not entering.wait(0.1) and not learning.done():
                pass
            following = self._collect() if self._learned_blocks + 1 < total else None
            learned = learning.result()
            before = self.step
            self._learned_blocks += 1
            if learned is not None:
                self._updates += self._config.training.gradient_steps
            if following is not None:
                self._acting = learned.weights if learned is not None else self._learner.weights()
            self._pending = following
            self._between_rounds(before, learned)

    def _collect(self) -> AnyBlock:
        block, episodes = self._collector.collect(self._acting)
        self._episodes.extend(episodes)
        return block

    def _learn(self, block: AnyBlock, entering: Callable[[], object]) -> Learned | None:
        """In the learner's thread: learns from a block, or only stores it while learning has not started."""
        if self._learned_blocks < self._stored_first:
            self._learner.insert_block(block, entering)
            return None
        importance = schedules.value(
            self._config.replay.importance_exponent, self.step, self._config.training.total_steps
        )
        return self._learner.learn_block(block, self._learning_rate(), importance, entering, self._done(1))

    def _done(self, blocks: int = 0) -> float:
        """The share of the run's env steps, after so many blocks more."""
        return (self.step + blocks * self._block_size) / self._config.training.total_steps

    def _learning_rate(self) -> float:
        return self.scheduled_learning_rate * self.learning_rate_scale

    @property
    def _block_size(self) -> int:
        return self._config.block_steps * self._config.environment.num_envs

    # --- between two rounds ---------------------------------------------------------------------------------------

    def _between_rounds(self, before: int, learned: Learned | None) -> None:
        """Logs, evaluates, calls back and saves where the round has crossed the interval of each."""
        if learned is not None and not math.isfinite(float(learned.metrics.loss)):
            self._diverged("the loss is")
        if self._crossed(before, self._config.logging.interval):
            self._write_metrics(learned)
        self.log.advance(self.step, self._postfix())
        if self._crossed(before, self._config.evaluation.interval):
            self._evaluate()
        if self._crossed(before, self._config.checkpoint.interval):
            self._save()
        self._agree_on_stopping()

    def _agree_on_stopping(self) -> None:
        """All workers stop together: a signal may reach one alone, and at any moment, also while it is told of here."""
        self._stops = next(filter(None, self._replicas.tell(self._reason)), "")

    def _crossed(self, before: int, interval: int) -> bool:
        return interval > 0 and self.step // interval > before // interval

    def _finish(self) -> None:
        """After the last round: a last evaluation unless a signal is waiting, and a checkpoint to go on from."""
        evaluates = self._evaluated_at != self.step and not any(self._replicas.tell(self._signal))
        if evaluates:
            self._evaluate()
        if evaluates or self._saved_step != self.step:
            self._save()
        for callback in self._callbacks:
            callback.on_train_end(self)

    def _write_metrics(self, learned: Learned | None) -> None:
        now, (then, step, updates) = time.perf_counter(), self._clock
        self._clock = (now, self.step, self.updates)
        row = {
            "train/epsilon": schedules.value(
                self._config.exploration.epsilon, self.step, self._config.training.total_steps
            ),
            "train/learning_rate": self._learning_rate(),
            "train/updates": float(self.updates),
            "replay/fill": self._learner.replay.fill,
            "speed/steps_per_second": (self.step - step) / max(now - then, 1e-9),
            "speed/updates_per_second": (self.updates - updates) / max(now - then, 1e-9),
        }
        if self._episodes:
            row["train/return"] = float(np.mean([episode.episode_return for episode in self._episodes]))
            row["train/length"] = float(np.mean([episode.length for episode in self._episodes]))
        agent = self._learner.agent
        if agent.pruning is not None:
            row["prune/sparsity"] = agent.pruning.sparsity(agent.online.trainable_variables)
            row["prune/target_sparsity"] = agent.pruning.target(self._done())
        if learned is not None:
            metrics = learned.metrics
            self._check_weights(learned.weights)
            td_error, q = np.asarray(metrics.td_error), np.asarray(metrics.q)
            row |= {
                "train/loss": float(metrics.loss),
                "train/gradient_norm": float(metrics.gradient_norm),
                "train/td_error": float(np.abs(td_error).mean()),
                "train/q": float(q.mean()),
            }
            if self._config.logging.histograms:
                self.log.histogram("train/td_errors", self.step, td_error)
                self.log.histogram("train/q_values", self.step, q)
        self.log.scalars(self.step, row)
        for callback in self._callbacks:
            callback.on_log(self, row)

    def _postfix(self) -> dict[str, float | str]:
        postfix: dict[str, float | str] = {}
        if self._episodes:
            postfix["return"] = f"{self._episodes[-1].episode_return:.1f}"
        if self._evaluation is not None:
            postfix["eval"] = f"{self._evaluation.mean:.1f}"
        return postfix

    def _evaluate(self) -> None:
        """Greedy episodes on the selection seeds; the best policy so far is kept, once it has all its zeros."""
        weights = self._learner.weights()
        self._check_weights(weights)
        self._greedy.load(weights)
        environment, seed = self._config.environment, self._config.seed
        seeds = envs.seeds(seed, self._config.evaluation.episodes, "selection")
        played = None
        if self._replicas.is_chief:
            played = evaluate(greedy(self._greedy), environment, seeds, factory=self._factory)
        result = self._replicas.tell(played)[0]  # of the chief
        assert result is not None
        self._evaluation, self._evaluated_at = result, self.step
        if self._learner.agent.is_pruned and result.mean >= self._best_return:
            self._best_return = result.mean
            if self._replicas.is_chief:
                self._run.save_best(
                    Best(self.step, result.mean, split_weights(weight_shapes(self._policy), weights)),
                    self._learner.observations(CALIBRATION),
                )
        row = {
            "eval/return": result.mean,
            "eval/return_min": float(result.returns.min()),
            "eval/length": float(result.lengths.mean()),
        }
        if self._best_return > -math.inf:
            row["eval/best_return"] = self._best_return
        self.log.scalars(self.step, row)
        if self._config.evaluation.video and self._replicas.is_chief:
            frames, _, _ = record(greedy(self._greedy), environment, seeds[0], factory=self._factory)
            self.log.images("eval/episode", self.step, frames)
        for callback in self._callbacks:
            callback.on_evaluation(self, result)

    def _check_weights(self, weights: Array) -> None:
        if not np.isfinite(weights).all():
            self._diverged("weights are")

    def _diverged(self, what: str) -> None:
        safe = (
            f"the checkpoint of step {self._saved_step} is kept"
            if self._saved_step >= 0
            else "there is no checkpoint yet"
        )
        if not self._learner.is_finite():
            raise RunError(
                f"the environment has shown an observation or a reward that is not finite, by step {self.step}; {safe}"
            )
        raise RunError(
            f"training has diverged: {what} not finite at step {self.step}; {safe}; a smaller optimizer.learning_rate "
            "or a reward of smaller size may help"
        )

    def _describe(self) -> None:
        """What TensorBoard shows once for each run."""
        self.log.text("config", to_toml(self._config))
        self.log.hparams(_flat(to_dict(self._config)), ["eval/return", "eval/best_return", "train/return"])
        self.log.graph(self._policy)

    # --- state, for checkpoints -----------------------------------------------------------------------------------

    def _save(self) -> None:
        self._check_weights(self._learner.weights())
        host: dict[str, Any] = {
            "collector": self._collector.state(),
            "pending": self._pending,
            "acting": self._acting,
            "learned_blocks": self._learned_blocks,
            "updates": self._updates,
            "stored_first": self._stored_first,
            "learning_rate_scale": self.learning_rate_scale,
            "episodes": list(self._episodes),
            "evaluation": self._evaluation,
            "evaluated_at": self._evaluated_at,
            "callbacks": callbacks_module.states(self._callbacks),
        }
        told = self._replicas.tell({name: host[name] for name in _OWN})
        if len(told) > 1:
            host["workers"] = told
        variables = self._learner.state(self._config.checkpoint.replay)
        if self._replicas.is_chief:
            self._checkpoints.save(self.step, variables, host)
        self._saved_step = self.step

    def _load_state(self, variables: dict[str, Array], host: dict[str, Any]) -> None:
        self._learner.load_state(variables)
        told = host.get("workers", [host])
        count, worker = self._replicas.workers, self._replicas.worker
        self._collector.load_state(shards.collectors([each["collector"] for each in told], count)[worker])
        self._pending = shards.blocks([each["pending"] for each in told], count)[worker]
        self._acting = host["acting"]
        self._learned_blocks, self._updates = host["learned_blocks"], host["updates"]
        if self._config.checkpoint.replay:
            self._stored_first = host["stored_first"]
        else:  # the ring is empty again and must fill before it is drawn from
            self._stored_first += self._learned_blocks
        self.learning_rate_scale = host["learning_rate_scale"]
        self._episodes.extend((told[worker] if len(told) == count else host)["episodes"])
        self._evaluation, self._evaluated_at = host["evaluation"], host["evaluated_at"]
        callbacks_module.load_states(self._callbacks, host["callbacks"])

    @contextlib.contextmanager
    def _stopping_on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run after the round, saved; a second one ends the process as usual."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: Any) -> None:
            self._signal = number
            self.stop(f"stopped by {signal.Signals(number).name}")
            signal.signal(number, previous[number])

        previous: dict[int, Any] = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.getsignal(number)
            signal.signal(number, stop)
        try:
            yield
        finally:
            for installed, handler in previous.items():
                signal.signal(installed, handler)


def _flat(tree: dict[str, Any], path: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            result |= _flat(value, f"{path}{key}.")
        else:
            result[f"{path}{key}"] = value
    return result
