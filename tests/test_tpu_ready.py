"""The check for TPUs finds what they refuse, and finds none of it in what is shipped."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from rlplatform.presets import resolve, shipped

SCRIPT = pathlib.Path(__file__).resolve().parent.parent / "scripts" / "check_tpu_ready.py"


@pytest.fixture(scope="module")
def check():
    specification = importlib.util.spec_from_file_location("check_tpu_ready", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: tf.where(x > 0.0), "Where has a shape that depends on values"),
        (lambda x: tf.numpy_function(np.sin, [x], tf.float32), "PyFunc.* calls the host"),
        (lambda x: tf.cast(x, tf.float64) + 1.0, "float64"),
        (lambda x: tf.strings.as_string(x), "string"),
        (lambda x: tf.cond(x[0] > 0.0, lambda: tf.unique(x)[0][:1], lambda: x[:1]), "Unique has a shape that depends"),
    ],
)
def test_what_a_tpu_refuses_is_named_wherever_it_stands(check, function, reason):
    reasons = list(check.refused(function, tf.TensorSpec([4], tf.float32)))
    assert any(re.match(reason, each) or reason in each for each in reasons), reasons


def test_what_it_takes_is_not(check):
    def fine(x):
        return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, tf.matmul(y, y)), (tf.constant(0), x))

    assert list(check.refused(fine, tf.TensorSpec([4, 4], tf.float32))) == []


def test_a_small_run_computes_what_the_preset_does(check):
    config = resolve("CartPole-v1", "rainbow")
    small = check.small(config)
    assert small.replay.capacity < 10_000 < config.replay.capacity
    assert small.agent == config.agent
    assert small.network == config.network
    assert small.training.batch_size == config.training.batch_size


def checked(presets):
    return subprocess.run([sys.executable, SCRIPT, "--presets", presets], capture_output=True, text=True)


@pytest.mark.slow
def test_some_presets_are_ready():
    done = checked("dqn,r2d2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ready") == 4


@pytest.mark.exhaustive
@pytest.mark.slow
def test_every_preset_is_ready():
    done = checked(",".join(shipped()))
    assert done.returncode == 0, done.stdout + done.stderr
