"""What a run tells while it trains: TensorBoard events, one line of JSON per row of metrics, one progress bar."""

import contextlib
import errno
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api_pb2 as hparams_api
from tensorboard.plugins.hparams import summary as hparams_plugin
from tensorboard.plugins.image.metadata import create_summary_metadata as image_metadata
from tensorboard.plugins.scalar.metadata import create_summary_metadata as scalar_metadata
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.util.tensor_util import make_tensor_proto
from tqdm import tqdm

from rlplatform.config import Config
from rlplatform.errors import RunError
from rlplatform.files import failure

METRICS = "metrics.jsonl"
_STRIP_FRAMES, _STRIP_COLUMNS, _FRAME_SIDE = 16, 4, 320


class Log:
    """Writes a run's metrics. What a method writes has left the process when it returns: a kill loses none of it.

    `metrics.jsonl` has one JSON object a line: `step`, `seconds` (spent training, over all sessions of the run) and
    every scalar of that step under its tag. A number that is not finite is `null`.

    Events are built here and handed to the `tf.summary` writer whole: a row of twelve scalars costs 0.3 ms, where
    `tf.summary.scalar` takes 9 ms for them.

    Args:
        folder: the run's folder; it must be there.
        config: the run's configuration.
        append: go on with the metrics that are there (a resumed run calls `truncate_after` next), or start anew.
        progress: show the bar on standard error.

    Raises:
        RunError: from every method, when the disk is full or the folder read-only or gone. Earlier rows are safe.
    """

    def __init__(self, folder: pathlib.Path, config: Config, *, append: bool, progress: bool) -> None:
        self._folder = pathlib.Path(folder)
        self._path = self._folder / METRICS
        self._total_steps = config.training.total_steps
        self._progress = progress
        self._bar: Any = None
        self._first_step = 0
        self._failed = False
        self._scalar_metadata = scalar_metadata(display_name=None, description=None)
        with self._guarded(), contextlib.ExitStack() as undo:
            self._path.touch()
            self._metrics = undo.enter_context(open(self._path, "r+b", buffering=0))
            self._go_on_from(math.inf if append else -1)
            self._writer = tf.summary.create_file_writer(str(self._folder), max_queue=100)
            if not append:
                self._start_session(0)
            undo.pop_all()

    def truncate_after(self, step: int) -> None:
        """Forgets what was logged after `step`, rows and TensorBoard's points alike. The bar goes on from `step`."""
        self._first_step = step
        with self._guarded():
            self._go_on_from(step)
        self._start_session(step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers to the row of `step`, which may not lie before the last row.

        Args:
            step: env steps done.
            values: numbers by tag: `train/return`, `speed/steps_per_second`, ...
        """
        if step < self._row.get("step", 0):
            raise ValueError(f"the row of step {step} comes after that of step {self._row['step']}")
        numbers = {tag: float(value) for tag, value in values.items()}
        with self._guarded():
            self._write_row(step, {tag: value if math.isfinite(value) else None for tag, value in numbers.items()})
        summary = Summary()
        for tag, value in numbers.items():
            point = summary.value.add(tag=tag, metadata=self._scalar_metadata)
            point.tensor.dtype = tf.float32.as_datatype_enum
            point.tensor.float_val.append(value)
        self._write(Event(step=step, summary=summary))

    def histogram(self, tag: str, step: int, values: np.ndarray) -> None:
        """Adds a histogram of the finite ones among `values`, of any shape. It is flushed with the next row."""
        numbers = np.asarray(values, np.float64).ravel()
        self._write(Event(step=step, summary=histogram_pb(tag, numbers[np.isfinite(numbers)])), flush=False)

    def text(self, tag: str, text: str) -> None:
        """Shows a text, such as the configuration, as it is: TensorBoard gets it as a block of code."""
        block = "".join(f"    {line}\n" for line in text.splitlines())
        self._write(Event(summary=text_pb(tag, block)))

    def hparams(self, hparams: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """Describes the run for TensorBoard's table of hyperparameters.

        Args:
            hparams: values by name. What is no bool, finite number or text is shown as a text.
            metrics: the tags of the scalars that the table shows beside them.
        """
        plain = {name: _plain(value) for name, value in hparams.items()}
        experiment = hparams_plugin.experiment_pb(
            [hparams_api.HParamInfo(name=name, type=_hparam_type(value)) for name, value in plain.items()],
            [hparams_api.MetricInfo(name=hparams_api.MetricName(tag=tag)) for tag in metrics],
        )
        for summary in (experiment, hparams_plugin.session_start_pb(plain)):
            self._write(Event(summary=Summary.FromString(summary.SerializeToString())))

    def graph(self, network: Any) -> None:
        """Shows a graph.

        Args:
            network: a `tf_keras` model, or a concrete function.
        """
        if not hasattr(network, "graph"):
            specs = [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in network.inputs]
            call = tf.function(lambda *inputs: network(inputs[0] if len(inputs) == 1 else list(inputs)))
            network = call.get_concrete_function(*specs)
        self._write(Event(graph_def=network.graph.as_graph_def(add_shapes=True).SerializeToString()))

    def images(self, tag: str, step: int, frames: np.ndarray) -> None:
        """Shows an episode as one film strip of at most 16 frames, the first and the last among them.

        Args:
            tag: the image's name.
            step: env steps done.
            frames: [F, H, W, 3] uint8, F at least 1.
        """
        strip = film_strip(frames)
        height, width = strip.shape[:2]
        parts = [str(width).encode(), str(height).encode(), tf.io.encode_png(strip).numpy()]
        summary = Summary()
        metadata = image_metadata(display_name=None, description=None)
        summary.value.add(tag=tag, metadata=metadata, tensor=make_tensor_proto(parts))
        self._write(Event(step=step, summary=summary))

    def advance(self, step: int, postfix: Mapping[str, float | str] | None = None) -> None:
        """Moves the bar to `step` and shows `postfix` behind it, such as the newest return. Cheap: call it at will."""
        if not self._progress:
            return
        if self._bar is None:
            self._bar = tqdm(
                total=self._total_steps,
                initial=self._first_step,
                unit=" steps",
                unit_scale=True,
                dynamic_ncols=True,
                mininterval=0.2
                if sys.stderr.isatty()
                else 10.0,  # a line in a log file now and then, not five a second
                file=sys.stderr,
            )
        if postfix:
            self._bar.set_postfix(postfix, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        """Closes the files and leaves the bar as it stands. Says nothing where a method has failed before."""
        if self._bar is not None:
            self._bar.close()
        failed_before = self._failed
        try:
            with self._guarded():
                self._metrics.close()
                self._writer.close()
        except RunError:
            if not failed_before:
                raise

    # --- metrics.jsonl ----------------------------------------------------------------------------------------------

    def _go_on_from(self, limit: float) -> None:
        """Finds the last whole row of at most step `limit` and cuts off what follows it."""
        self._row: dict[str, Any] = {}
        self._row_at, self._row_bytes = 0, b""
        with open(self._path, "rb") as file:
            for line in file:
                row = _parsed(line)
                if row is None or row["step"] > limit:
                    break
                self._row_at += len(self._row_bytes)
                self._row, self._row_bytes = row, line
        self._metrics.truncate(self._row_at + len(self._row_bytes))
        self._started = time.monotonic() - self._row.get("seconds", 0.0)

    def _write_row(self, step: int, values: Mapping[str, float | None]) -> None:
        """Appends a row, or writes it over the last one where that is of the same step."""
        if os.fstat(self._metrics.fileno()).st_nlink == 0:  # written to, a deleted file would not complain
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        end = self._row_at + len(self._row_bytes)
        if step == self._row.get("step"):
            row, at = {**self._row, **values}, self._row_at
        else:
            row, at = {"step": step, "seconds": round(time.monotonic() - self._started, 3), **values}, end
        line = json.dumps(row).encode() + b"\n"
        try:
            self._put(line, at)
        except OSError:
            with contextlib.suppress(OSError):  # the last row is left whole; there was room for it before
                self._put(self._row_bytes, self._row_at)
            raise
        self._row, self._row_at, self._row_bytes = row, at, line

    def _put(self, line: bytes, at: int) -> None:
        """Makes `line` the file's last, from byte `at` on."""
        self._metrics.seek(at)
        if self._metrics.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._metrics.truncate(at + len(line))

    # --- events -----------------------------------------------------------------------------------------------------

    def _start_session(self, step: int) -> None:
        """Tells TensorBoard that the points from `step` on, which files before this one hold, are no longer true."""
        self._write(Event(step=step, session_log=SessionLog(status=SessionLog.START)))

    def _write(self, event: Event, flush: bool = True) -> None:
        event.wall_time = time.time()
        with self._guarded():
            tf.raw_ops.ImportEvent(writer=self._writer._resource, event=event.SerializeToString())
            if flush:
                self._writer.flush()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turns what a file system says into one sentence."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            self._failed = True
            last = getattr(self, "_row", {}).get("step")
            safe = "no row was there before" if last is None else f"all rows up to step {last} are in {METRICS}"
            raise failure(_os_error(error), "the metrics", self._folder, safe) from error


def film_strip(frames: np.ndarray) -> np.ndarray:
    """At most 16 frames of an episode, evenly spaced, four in a row; large ones are made smaller.

    Args:
        frames: [F, H, W, 3] uint8, F at least 1.

    Returns:
        [rows * h, columns * w, 3] uint8; places without a frame are black.
    """
    every = -(-max(frames.shape[1:3]) // _FRAME_SIDE)
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), _STRIP_FRAMES)).round().astype(int)
    picked = frames[chosen, ::every, ::every]
    count, height, width, channels = picked.shape
    columns = min(count, _STRIP_COLUMNS)
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, height, width, channels), np.uint8)
    grid[:count] = picked
    return grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The row that a line holds; None where a kill or a power cut has left half of one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(row, dict) and isinstance(row.get("step"), int)
    return row if whole else None


def _plain(value: Any) -> bool | int | float | str:
    """What TensorBoard's table can hold: its JSON has neither lists nor infinities."""
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def _hparam_type(value: bool | int | float | str) -> Any:
    if isinstance(value, bool):
        return hparams_api.DATA_TYPE_BOOL
    return hparams_api.DATA_TYPE_STRING if isinstance(value, str) else hparams_api.DATA_TYPE_FLOAT64


def _os_error(error: Exception) -> OSError:
    """The operating system's error behind one of TensorFlow's."""
    if isinstance(error, OSError):
        return error
    numbers = {
        tf.errors.ResourceExhaustedError: errno.ENOSPC,
        tf.errors.PermissionDeniedError: errno.EACCES,
        tf.errors.NotFoundError: errno.ENOENT,
    }
    number = numbers.get(type(error), errno.EIO)
    return OSError(number, os.strerror(number))
