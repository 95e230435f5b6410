"""The speed of training is measured on fixed work, by a clock that starts when learning has warmed up."""

import pytest

from rlplatform.benchmarks import speed
from rlplatform.config import constant
from rlplatform.errors import UserError
from rlplatform.presets import resolve


def settings(task):
    """The configuration that a task trains with."""
    env_id, steps, _, changes = speed.TASKS[task]
    overrides = [f"{key}={value}" for key, value in (changes | speed._UNWATCHED).items()]
    return resolve(env_id, "dqn", overrides, training={"total_steps": steps})


@pytest.mark.parametrize(
    ("task", "batch_size", "env_steps_per_update", "learning_rate", "capacity", "target_steps"),
    [
        ("cartpole", 128, 10, 2.5e-4, 10_000, 500),
        ("cartpole8", 128, 10, 2.5e-4, 10_000, 500),
        ("pong", 32, 4, 1e-4, 10_000, 1_000),
    ],
)
def test_tasks_are_the_work_that_other_libraries_are_measured_on(
    task, batch_size, env_steps_per_update, learning_rate, capacity, target_steps
):
    config = settings(task)
    assert config.training.batch_size == batch_size
    assert config.training.train_interval == env_steps_per_update * config.training.gradient_steps
    assert config.optimizer.learning_rate == constant(learning_rate)
    assert config.replay.capacity == capacity
    assert config.agent.target_update_interval * env_steps_per_update == target_steps
    flags = [config.agent.double, config.network.dueling, config.network.noisy, config.replay.prioritized]
    assert not any(flags)
    assert (config.agent.head, config.agent.n_step, config.agent.gamma) == ("scalar", 1, 0.99)
    assert (config.agent.tau, config.agent.normalize_rewards, config.network.layer_norm) == (1.0, False, False)
    assert config.evaluation.interval == config.checkpoint.interval == 0


def test_pong_is_what_atari_agents_see():
    config = settings("pong")
    assert config.environment.id == "ALE/Pong-v5"
    assert (config.environment.frame_stack, config.network.torso) == (4, "nature")
    assert {"frameskip", "img_height", "img_width", "grayscale"}.isdisjoint(
        config.environment.kwargs
    )  # 4, 84, 84, grey
    _, steps, warm, _ = speed.TASKS["pong"]
    assert warm % config.logging.interval == steps % config.logging.interval == 0  # the clock reads rows of metrics


@pytest.mark.slow
def test_the_clock_leaves_the_warm_up_out():
    result = speed.measure("cartpole", 4_000)
    assert result["env_steps"] == 2_000
    assert result["updates"] == 200
    assert result["env_steps_per_s"] == pytest.approx(2_000 / result["seconds"], rel=0.01)
    assert (result["peer"], result["task"]) == ("rlplatform", "cartpole")
    assert result["threads"] >= 1


@pytest.mark.parametrize(("task", "steps", "sentence"), [("pnog", None, "did you mean 'pong'"), ("pong", 700, "1200")])
def test_unknown_tasks_and_too_short_ones_are_refused(task, steps, sentence):
    with pytest.raises(UserError, match=sentence):
        speed.measure(task, steps)
