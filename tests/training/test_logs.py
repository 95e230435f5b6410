"""Logs: what TensorBoard reads back, one row a step whatever happens, one bar, and disks that fail."""

import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from rlplatform.config import Config
from rlplatform.errors import RunError
from rlplatform.training.logs import Log, film_strip


def opened(folder, append=False, progress=False, total_steps=1000):
    config = Config().replace(training={"total_steps": total_steps})
    return Log(pathlib.Path(folder), config, append=append, progress=progress)


def rows(folder):
    return [json.loads(line) for line in (pathlib.Path(folder) / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows(folder)]


@pytest.fixture
def log(tmp_path):
    log = opened(tmp_path)
    yield log
    log.close()


def read_back(folder):
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def points(folder, tag):
    return [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in read_back(folder).Tensors(tag)]


# --- metrics.jsonl --------------------------------------------------------------------------------------------------

TAGS = st.sampled_from(["train/return", "train/loss", "eval/return"])
NUMBERS = st.floats(allow_nan=True, allow_infinity=True, width=32)


@settings(max_examples=60)
@given(
    calls=st.lists(st.tuples(st.integers(0, 3), st.dictionaries(TAGS, NUMBERS)), min_size=1, max_size=8),
    reopened=st.sets(st.integers(0, 7)),
)
def test_each_step_has_one_row_with_every_number_given_for_it(calls, reopened):
    """Compared with a dict of dicts; the log is closed and opened again between some calls."""
    expected, step = {}, 0
    with tempfile.TemporaryDirectory() as folder:
        log = opened(folder)
        for i, (steps, values) in enumerate(calls):
            if i in reopened:
                log.close()
                log = opened(folder, append=True)
            step += steps
            log.scalars(step, values)
            shown = {tag: value if math.isfinite(value) else None for tag, value in values.items()}
            expected.setdefault(step, {"step": step}).update(shown)
            assert without_seconds(folder) == list(expected.values())
        log.close()


@settings(max_examples=60)
@given(killed_at=st.floats(0.0, 1.0), count=st.integers(0, 5), limit=st.integers(0, 60))
def test_a_resumed_run_keeps_the_whole_rows_up_to_its_step(killed_at, count, limit):
    """The writer was killed at any byte of the file; the run goes on from any step."""
    with tempfile.TemporaryDirectory() as folder:
        log = opened(folder)
        for step in range(10, 10 * (count + 1), 10):
            log.scalars(step, {"train/loss": 1.0 / step})
        log.close()
        path = pathlib.Path(folder) / "metrics.jsonl"
        text = path.read_text()
        cut = text[: round(killed_at * len(text))]  # a share: the clock readings decide how long the file is
        path.write_text(cut)
        whole = [json.loads(line) for line in text.splitlines()][: cut.count("\n")]
        log = opened(folder, append=True)
        log.truncate_after(limit)
        kept = [row for row in whole if row["step"] <= limit]
        assert rows(folder) == kept
        log.scalars(100, {"train/loss": 0.5})
        assert [row["step"] for row in rows(folder)] == [row["step"] for row in kept] + [100]
        log.close()


def test_seconds_go_on_where_the_run_was_stopped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "seconds": 100.0}\n{"step": 20, "seconds": 200.0}\n')
    log = opened(tmp_path, append=True)
    log.truncate_after(10)
    log.scalars(20, {})
    log.close()
    assert 100.0 <= rows(tmp_path)[1]["seconds"] < 200.0


def test_a_new_log_begins_an_empty_file(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "seconds": 100.0}\n')
    opened(tmp_path).close()
    assert rows(tmp_path) == []


def test_a_step_before_the_last_row_is_refused(log):
    log.scalars(20, {"train/loss": 1.0})
    with pytest.raises(ValueError, match="the row of step 10 comes after that of step 20"):
        log.scalars(10, {"train/loss": 1.0})


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def test_scalars_are_read_back_without_closing_the_log(log, tmp_path):
    log.scalars(10, {"train/return": 1.5, "train/loss": 0.25})
    log.scalars(20, {"train/return": np.float32(2.5)})
    assert points(tmp_path, "train/return") == [(10, 1.5), (20, 2.5)]
    assert points(tmp_path, "train/loss") == [(10, 0.25)]


def test_points_are_those_that_tf_summary_writes(log, tmp_path):
    """The same number through TensorFlow's own call: an equal tag, step, value and metadata."""
    log.scalars(10, {"train/return": 1.5})
    with tf.summary.create_file_writer(str(tmp_path / "other")).as_default(10):
        tf.summary.scalar("train/return", 1.5)
        tf.summary.flush()

    def summaries(folder):
        path = next(path for path in folder.iterdir() if "tfevents" in path.name)
        return [(event.step, event.summary) for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]

    ((step, ours),), ((other_step, theirs),) = summaries(tmp_path), summaries(tmp_path / "other")
    assert step == other_step
    assert ours.value[0].tag == theirs.value[0].tag
    assert ours.value[0].metadata == theirs.value[0].metadata
    np.testing.assert_array_equal(tf.make_ndarray(ours.value[0].tensor), tf.make_ndarray(theirs.value[0].tensor))


def test_a_resumed_run_replaces_the_points_of_its_abandoned_course(tmp_path):
    log = opened(tmp_path)
    for step in (10, 20, 30, 40):
        log.scalars(step, {"train/loss": 1.0})
    log.close()
    log = opened(tmp_path, append=True)
    log.truncate_after(20)
    log.scalars(35, {"train/loss": 2.0})
    log.close()
    assert points(tmp_path, "train/loss") == [(10, 1.0), (20, 1.0), (35, 2.0)]


def test_a_run_that_starts_anew_replaces_every_point(tmp_path):
    for value in (1.0, 2.0):
        log = opened(tmp_path)
        log.scalars(0, {"train/loss": value})
        log.close()
    assert points(tmp_path, "train/loss") == [(0, 2.0)]


def test_a_histogram_counts_the_finite_values(log, tmp_path):
    values = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float32)
    values[0, :3] = (np.nan, np.inf, -np.inf)
    log.histogram("train/td_error", 10, values)
    log.scalars(10, {})
    (event,) = read_back(tmp_path).Tensors("train/td_error")
    buckets = tf.make_ndarray(event.tensor_proto)  # [30, 3]: left, right, count
    finite = values[np.isfinite(values)]
    counts, edges = np.histogram(finite.astype(np.float64), bins=30)
    assert event.step == 10
    assert buckets[:, 2].sum() == 997
    np.testing.assert_allclose(buckets[:, 0], edges[:-1], atol=1e-12)
    assert np.abs(buckets[:, 2] - counts).sum() <= 2  # a value on an edge may fall to either side


def test_histograms_of_nothing_and_of_one_value_are_no_error(log):
    log.histogram("a", 1, np.array([np.nan]))
    log.histogram("b", 1, np.full(5, 3.0))


def test_a_text_is_shown_as_it_is(log, tmp_path):
    log.text("config", "# not a title\n[a]\nb = 1\n")
    (event,) = read_back(tmp_path).Tensors("config")
    assert tf.make_ndarray(event.tensor_proto).item().decode() == "    # not a title\n    [a]\n    b = 1\n"


def test_hparams_are_read_back_with_their_types(log, tmp_path):
    log.hparams({"seed": 3, "rate": 0.5, "double": True, "stop": math.inf, "units": (4, 2)}, ["eval/return"])
    accumulator = read_back(tmp_path)
    content = accumulator.PluginTagToContent("hparams")
    data = [plugin_data_pb2.HParamsPluginData.FromString(item) for item in content.values()]
    experiment = next(item.experiment for item in data if item.HasField("experiment"))
    session = next(item.session_start_info for item in data if item.HasField("session_start_info"))
    kinds = {info.name: info.type for info in experiment.hparam_infos}
    string, boolean, number = 1, 2, 3  # as TensorBoard's api.proto numbers them
    assert kinds == {"seed": number, "rate": number, "double": boolean, "stop": string, "units": string}
    assert [info.name.tag for info in experiment.metric_infos] == ["eval/return"]
    assert session.hparams["seed"].number_value == 3
    assert session.hparams["rate"].number_value == 0.5
    assert session.hparams["double"].bool_value is True
    assert session.hparams["stop"].string_value == "inf"
    assert session.hparams["units"].string_value == "(4, 2)"


def test_the_graph_of_a_network_and_of_a_function_is_read_back(log, tmp_path):
    inputs = keras.Input((4,))
    log.graph(keras.Model(inputs, keras.layers.Dense(2, name="values")(inputs)))
    names = [node.name for node in read_back(tmp_path).Graph().node]
    assert any("values" in name and name.endswith("MatMul") for name in names)
    function = tf.function(lambda x: tf.add(x, 1.0, name="one_more"))
    log.graph(function.get_concrete_function(tf.TensorSpec([], tf.float32)))
    assert "one_more" in [node.name for node in read_back(tmp_path).Graph().node]


def test_an_episode_is_shown_as_one_image(log, tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
    log.images("eval/video", 10, frames)
    (event,) = read_back(tmp_path).Tensors("eval/video")
    width, height, png = tf.make_ndarray(event.tensor_proto)
    image = tf.io.decode_png(png).numpy()
    assert (int(width), int(height)) == (20, 24)
    assert image.shape == (24, 20, 3)
    np.testing.assert_array_equal(image[:6, :5], frames[0])
    np.testing.assert_array_equal(image[-6:, -5:], frames[-1])


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (3, 1, 3), (4, 1, 4), (5, 2, 4), (16, 4, 4)])
def test_a_short_episode_is_shown_whole_and_in_order(count, rows, columns):
    frames = np.random.default_rng(0).integers(1, 256, (count, 7, 3, 3), np.uint8)
    strip = film_strip(frames)
    assert strip.shape == (7 * rows, 3 * columns, 3)
    for i in range(rows * columns):
        row, column = divmod(i, columns)
        cell = strip[7 * row : 7 * (row + 1), 3 * column : 3 * (column + 1)]
        np.testing.assert_array_equal(cell, frames[i] if i < count else 0)


def test_large_frames_are_made_smaller():
    assert film_strip(np.zeros((16, 400, 640, 3), np.uint8)).shape == (800, 1280, 3)


# --- the bar --------------------------------------------------------------------------------------------------------


def test_the_bar_shows_progress_and_return_on_standard_error(tmp_path, capsys):
    log = opened(tmp_path, progress=True)
    for step in (0, 250, 500):
        log.advance(step, {"return": 123.0})
    log.close()
    captured = capsys.readouterr()
    last = captured.err.rsplit("\r")[-1]
    assert captured.out == ""
    assert "50%" in last
    assert "500/1.00k" in last
    assert "return=123" in last


def test_the_bar_of_a_resumed_run_counts_its_own_steps_only(tmp_path, capsys):
    log = opened(tmp_path, progress=True, append=True)
    log.truncate_after(400)
    log.advance(400)
    assert "40%" in capsys.readouterr().err
    log.advance(500)
    assert log._bar.n - log._bar.initial == 100  # what steps/s and the time left are reckoned from
    log.close()


def test_without_progress_nothing_is_printed(tmp_path, capsys):
    log = opened(tmp_path)
    log.advance(10, {"return": 1.0})
    log.close()
    assert capsys.readouterr() == ("", "")


# --- disks that fail ------------------------------------------------------------------------------------------------


def test_a_folder_that_has_vanished_is_named(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunError, match=r"run is gone, so the metrics could not be written; no row was there before$"):
        opened(run)
    run.mkdir()
    log = opened(run)
    log.scalars(10, {"train/loss": 1.0})
    shutil.rmtree(run)
    with pytest.raises(RunError, match=r"run is gone, so the metrics could not be written; all rows up to step 10 "):
        log.scalars(20, {"train/loss": 1.0})
    log.close()
    assert not run.exists()


def test_a_full_disk_while_a_row_is_written_leaves_the_rows_before(tmp_path):
    """The file takes half of the row, as a disk with some bytes left does."""
    log = opened(tmp_path)
    log.scalars(10, {"train/loss": 1.0})
    real = log._metrics

    class Full:
        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, data):
            return real.write(
                data if b'"step": 10, "seconds"' in data and b"eval" not in data else data[: len(data) // 2]
            )

    for step, tag in ((20, "train/loss"), (10, "eval/return")):  # a new row; a longer one in the place of the last
        log._metrics = Full()
        with pytest.raises(
            RunError, match=r"^the disk of .* is full, so the metrics .* all rows up to step 10 are in "
        ):
            log.scalars(step, {tag: 1.0})
        log._metrics = real
        assert without_seconds(tmp_path) == [{"step": 10, "train/loss": 1.0}]
    log.scalars(30, {})
    log.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 30]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (tf.errors.ResourceExhaustedError, "the disk of .* is full"),
        (tf.errors.PermissionDeniedError, "is read-only here"),
        (tf.errors.NotFoundError, "is gone"),
        (tf.errors.UnknownError, "Input/output error in"),
    ],
)
def test_what_the_writer_of_events_says_becomes_one_sentence(tmp_path, monkeypatch, error, reason):
    log = opened(tmp_path)

    def refuse():
        raise error(None, None, "Could not flush events file.")

    with monkeypatch.context() as patch:
        patch.setattr(log._writer, "flush", refuse)
        with pytest.raises(RunError, match=rf"{reason}.*, so the metrics could not be written; all rows up to step 10"):
            log.scalars(10, {"train/loss": 1.0})
    log.close()


def test_a_small_disk_that_fills_up_ends_in_one_sentence(tmp_path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")
    try:
        log = opened(tmp_path)

        def fill():
            for step in range(1, 5000):
                log.scalars(step, {"train/loss": 1.0})

        with pytest.raises(
            RunError, match=r"^the disk of .* is full, so the metrics could not be written; all rows up"
        ):
            fill()
        log.close()
        steps = [row["step"] for row in rows(tmp_path)]
        assert steps == list(range(1, len(steps) + 1))
        with pytest.raises(RunError, match=r"^the disk of .* is full, so the metrics .* all rows up to step"):
            opened(tmp_path, append=True)
        subprocess.run(["mount", "-o", "remount,size=1m", tmp_path], check=True)
        log = opened(tmp_path, append=True)  # with room again, the run goes on
        log.truncate_after(100)
        log.scalars(101, {"train/loss": 1.0})
        log.close()
        assert [row["step"] for row in rows(tmp_path)] == list(range(1, 102))
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)
