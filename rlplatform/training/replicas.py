"""The replicas of a strategy as the learner sees them: what each of them owns, and how a program runs on all."""

import contextlib
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from rlplatform import devices
from rlplatform.errors import RunError

Array = np.ndarray[Any, Any]
T = TypeVar("T")
HEAD, CHUNK = 120, 1 << 26  # bytes that a worker tells the others at first, and at once after that
_GONE = (
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.InternalError,
)


class Stateful(Protocol):
    """What a replica owns, such as its replay."""

    def state(self, replica: int = 0) -> dict[str, Array]:
        """Every variable by name; of those that are distributed, the replica's."""

    def load_state(self, state: dict[str, Array], replica: int = 0) -> None:
        """Puts back what `state` gave."""


class Replicas:
    """Runs functions on the replicas of this process, in step with those of other processes.

    Args:
        strategy: of one replica or of several.

    Attributes:
        count: of replicas, over all workers.
        workers: how many processes there are.
        worker: which of them this one is; the first is the chief.
        compiled: whether XLA compiles what each replica runs.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self.strategy = strategy
        self.devices: tuple[str, ...] = strategy.extended.worker_devices
        self.count = int(strategy.num_replicas_in_sync)
        self.workers = self.count // len(self.devices)
        self.worker = devices.cluster().task if self.workers > 1 else 0
        self._exchange = tf.function(
            lambda value: self.run(lambda own: devices.gathered(own, axis=0), value), autograph=False
        )
        self.compiled = all("GPU" in device for device in self.devices)
        # A TPU's program is traced once for all cores: what differs between them lies in distributed variables.
        self._traced_once = self.count == 1 or isinstance(strategy, tf.distribute.TPUStrategy)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes the run's files."""
        return self.worker == 0

    # --- what they own --------------------------------------------------------------------------------------------

    def each(self, make: Callable[[], T]) -> list[T]:
        """Makes an object with variables of its own for each replica of this process; one where a program is shared."""
        if self._traced_once:
            with self.strategy.scope():
                return [make()]
        made = []
        for device in self.devices:
            with tf.device(device):
                made.append(make())
        return made

    def mine(self, made: Sequence[T]) -> T:
        """Traced: among what `each` has made, that of the replica for which this line is traced."""
        if len(made) == 1:
            return made[0]
        return made[(int(tf.get_static_value(devices.replica())) - self._first) % len(made)]

    def states(self, made: Sequence[Stateful]) -> list[dict[str, Array]]:
        """What each replica of this process owns."""
        return [owner.state(index) for owner, index in self._owners(made)]

    def load_states(self, made: Sequence[Stateful], states: Sequence[dict[str, Array]]) -> None:
        """Puts back what `states` gave on all workers, one after the other."""
        own = states[self._first : self._first + len(self.devices)]
        for (owner, index), state in zip(self._owners(made), own, strict=True):
            owner.load_state(state, index)

    def _owners(self, made: Sequence[T]) -> list[tuple[T, int]]:
        shared = len(self.devices) // len(made)
        return [(owner, index) for owner in made for index in range(shared)]

    @property
    def _first(self) -> int:
        return self.worker * len(self.devices)

    # --- programs -------------------------------------------------------------------------------------------------

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Traced: calls `function` on every replica, each with its part of what `split` has made.

        On GPUs XLA compiles it for each, as TensorFlow has it for several of them: there are no kernels of its own for
        rings of bytes there. On logical CPUs, which are one device to XLA, TensorFlow runs it.
        """
        if self.compiled:
            function = tf.function(function, jit_compile=True, autograph=False)
        return self.strategy.run(function, args=arguments)

    def repeat(self, times: int, body: Callable[[tf.Tensor], object]) -> None:
        """Traced: calls `body` with 0, 1, ...; it may call `run`, whose replicas may meet, which a loop in one may not.

        One copy of it, whatever the number.
        """

        def step(index: tf.Tensor) -> tf.Tensor:
            body(index)
            return index + 1

        if times > 0:
            tf.while_loop(lambda index: index < times, step, (tf.constant(0),))

    def split(self, array: Array, axis: int) -> Any:
        """A tensor for `run`, of which each replica of this process sees its part along an axis."""
        parts = np.split(array, len(self.devices), axis)
        return self.strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[int(context.replica_id_in_sync_group) - self._first])
        )

    def joined(self, value: Any) -> tf.Tensor:
        """Traced: what `run` gave on the replicas of this process, one after the other along the first axis."""
        return tf.concat(self.strategy.experimental_local_results(value), axis=0)

    def one(self, value: Any) -> tf.Tensor:
        """Traced: what `run` gave on each replica alike."""
        return self.strategy.experimental_local_results(value)[0]

    def mean(self, value: Any) -> tf.Tensor:
        """Traced: the mean of what `run` gave on all replicas."""
        return self.strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)

    # --- between workers ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What is done inside needs all workers.

        Raises:
            RunError: another one is gone.
        """
        try:
            yield
        except _GONE as error:
            if self.workers == 1:
                raise
            raise RunError(
                f"worker {self.worker} has lost another worker, so the run ends here; start all of them again with "
                "--resume, and it goes on from its newest checkpoint"
            ) from error

    def tell(self, value: T) -> list[T]:
        """What each worker has called this with, by worker. All of them must call it, and wait for one another.

        Raises:
            RunError: another one is gone.
        """
        if self.workers == 1:
            return [value]
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        heads = self._gathered(len(data).to_bytes(8, "little") + data[:HEAD])
        sizes = [int.from_bytes(head[:8], "little") for head in heads]
        received = [[head[8:]] for head in heads]
        for start in range(HEAD, max(sizes), CHUNK):
            length = min(CHUNK, max(sizes) - start)
            for chunks, chunk in zip(received, self._gathered(data[start : start + length], length), strict=True):
                chunks.append(chunk)
        return [pickle.loads(b"".join(chunks)[:size]) for chunks, size in zip(received, sizes, strict=True)]

    def _gathered(self, data: bytes, length: int = 8 + HEAD) -> list[bytes]:
        """The data of all workers, each filled up to a length that all of them know.

        Collectives know no bytes: four of them are a number, and every replica brings its part. Lengths are rounded up
        to few different ones, for each of which the program is traced.
        """
        unit = 4 * len(self.devices)
        numbers = np.frombuffer(data.ljust(max(unit, unit << (-(-length // unit) - 1).bit_length()), b"\0"), np.int32)
        with self.together():
            told = self._exchange(self.split(numbers, 0))
            whole = self.strategy.experimental_local_results(told)[0].numpy()
        return [own.tobytes()[:length] for own in whole.reshape(self.workers, -1)]
