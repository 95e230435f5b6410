"""A run that is stopped, killed, cut or out of disk goes on as if nothing had been; what cannot go on says why."""

import fcntl
import json
import os
import signal
import subprocess
import threading

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.testing import assert_array_equal

from rlplatform import api
from rlplatform.errors import RunError, UserError
from rlplatform.training import Callback, HostCollector, Run

STEPS, HALF = 384, 192
BLOCK, STORED_FIRST, GRADIENT_STEPS = 16, 3, 2  # three blocks are only stored: learning_starts is 64
SMALL = (
    "device=cpu",
    "network.hidden_units=[8]",
    f"training.train_interval={BLOCK}",
    f"training.gradient_steps={GRADIENT_STEPS}",
    "training.learning_starts=64",
    "training.batch_size=8",
    "replay.capacity=256",
    "agent.target_update_interval=5",
    "evaluation.interval=96",
    "evaluation.episodes=2",
    "checkpoint.interval=64",
    "logging.interval=64",
)
STACKED = ("environment.num_envs=2", "environment.frame_stack=2", "agent.n_step=3", "network.dueling=true")


class StopAt(Callback):
    """Stops after the first evaluation or row of metrics from `step` on, after doing `first`."""

    def __init__(self, step, first=lambda: None):
        self.step, self.first = step, first

    def on_log(self, run, row):
        if run.step >= self.step:
            self.first()
            run.stop("stopped by the test")

    on_evaluation = on_log


class Doing(Callback):
    """Does something at the first row of metrics from `step` on."""

    def __init__(self, step, something):
        self.step, self.something, self.done = step, something, False

    def on_log(self, run, row):
        if run.step >= self.step and not self.done:
            self.done = True
            self.something()


class Locked(CartPoleEnv):
    """Cannot be pickled."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.lock = threading.Lock()


class Rewarding(gym.Env):
    """Every reward is the constructor's."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, reward=1.0, observation=0.0):
        self.reward, self.observation, self.count = reward, np.full(2, observation, np.float32), 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return self.observation.copy(), {}

    def step(self, action):
        self.count += 1
        return self.observation.copy(), self.reward, self.count == 10, False, {}


def train(path, env="CartPole-v1", *, more=(), resume=False, callbacks=(), seed=3):
    return api.session(
        env,
        steps=STEPS,
        seed=seed,
        out=path,
        overrides=(*SMALL, *more),
        resume=resume,
        callbacks=callbacks,
        progress=False,
    )


def rows(run):
    """The rows of metrics without what the clock says."""
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds" and "speed/" not in k} for line in lines]


def assert_same_weights(one, other, which="last"):
    for weight, expected in zip(one.network(which).get_weights(), other.network(which).get_weights(), strict=True):
        assert_array_equal(weight, expected)


def assert_same_run(one, other):
    assert_same_weights(one, other)
    assert_same_weights(one, other, "best")
    assert_array_equal(one.observations(10_000), other.observations(10_000))
    assert rows(one) == rows(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run, outcome = train(tmp_path_factory.mktemp("runs") / "undisturbed")
    assert outcome[:4] == (STEPS, (STEPS // BLOCK - STORED_FIRST) * GRADIENT_STEPS, "finished", 0)
    return run


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder):
    with open(folder / "filler", "wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


# --- the same again -------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(tmp_path, undisturbed):
    assert_same_run(train(tmp_path / "again")[0], undisturbed)


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path, undisturbed):
    other, _ = train(tmp_path / "other", seed=4)
    assert not np.array_equal(other.network("last").get_weights()[0], undisturbed.network("last").get_weights()[0])


@pytest.mark.slow
def test_noise_and_priorities_go_on_bit_for_bit(tmp_path):
    more = ["network.noisy=true", "replay.prioritized=true", "exploration.epsilon=0.0"]
    whole, _ = train(tmp_path / "whole", more=more)
    stopped, _ = train(tmp_path / "run", more=more, callbacks=[StopAt(HALF)])
    assert_same_run(train(stopped.path, more=more, resume=True)[0], whole)


@pytest.mark.slow
def test_a_run_stopped_by_a_callback_goes_on_bit_for_bit(tmp_path, undisturbed):
    stopped, outcome = train(tmp_path / "run", callbacks=[StopAt(HALF)])
    assert (outcome.steps, outcome.reason, outcome.signal) == (HALF, "stopped by the test", 0)
    resumed, outcome = train(stopped.path, resume=True)
    assert (outcome.steps, outcome.reason) == (STEPS, "finished")
    assert_same_run(resumed, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(tmp_path, undisturbed, number):
    handler = signal.getsignal(number)
    # Not at an evaluation's step: a signal leaves without a last one.
    stopped, outcome = train(tmp_path / "run", callbacks=[Doing(128, lambda: signal.raise_signal(number))])
    assert (outcome.steps, outcome.reason, outcome.signal) == (128, f"stopped by {number.name}", number)
    assert signal.getsignal(number) == handler
    assert_same_run(train(stopped.path, resume=True)[0], undisturbed)


@pytest.mark.slow
def test_environments_side_by_side_and_stacked_frames_go_on_bit_for_bit(tmp_path):
    whole, _ = train(tmp_path / "whole", more=STACKED)
    stopped, _ = train(tmp_path / "run", more=STACKED, callbacks=[StopAt(HALF)])
    assert_same_run(train(stopped.path, more=STACKED, resume=True)[0], whole)


EVERYTHING = (
    *STACKED,
    "agent.head=implicit_quantile",
    "agent.num_quantiles=4",
    "agent.munchausen=true",
    "agent.normalize_rewards=true",
    "network.noisy=true",
    "network.layer_norm=true",
    "network.normalize_observations=true",
    "replay.prioritized=true",
)


@pytest.mark.slow
def test_noise_priorities_levels_and_statistics_go_on_bit_for_bit(tmp_path):
    whole, _ = train(tmp_path / "whole", more=EVERYTHING)
    stopped, outcome = train(tmp_path / "run", more=EVERYTHING, callbacks=[StopAt(HALF)])
    assert outcome.steps == HALF
    assert_same_run(train(stopped.path, more=EVERYTHING, resume=True)[0], whole)
    saved, expected = (run.checkpoints().restore().variables for run in (stopped, whole))
    assert saved.keys() == expected.keys()
    assert {"replay/level_0", "replay/greatest", "agent/normalization/0"} <= saved.keys()
    for name, value in expected.items():
        assert_array_equal(saved[name], value, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, HALF])
def test_a_run_without_a_checkpoint_is_begun_anew_by_resume(tmp_path, undisturbed, killed_at):
    """However many rows of metrics it has written, and whatever policy it has kept."""
    run = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(run, callbacks=[Doing(killed_at, lambda: 1 // 0)], more=["checkpoint.interval=0"])
    assert Run.open(run).checkpoints().restore() is None
    assert_same_run(train(run, resume=True)[0], undisturbed)


def test_a_finished_run_resumed_changes_nothing(tmp_path, undisturbed):
    again, outcome = train(undisturbed.path, resume=True)
    assert (outcome.steps, outcome.reason) == (STEPS, "finished")
    assert_same_run(again, undisturbed)


def test_no_step_is_saved_twice(undisturbed):
    """The last step is also a checkpoint's step here."""
    assert STEPS % 64 == 0
    names = sorted(path.name for path in (undisturbed.path / "checkpoints").iterdir())
    assert names == [f"step_{STEPS - 64:09d}", f"step_{STEPS:09d}"]


@pytest.mark.slow
def test_a_truncated_newest_checkpoint_is_skipped_by_one_sentence(tmp_path, undisturbed):
    stopped, _ = train(tmp_path / "run", callbacks=[StopAt(HALF)])
    newest = max((stopped.path / "checkpoints").iterdir())
    with open(newest / "variables.npy", "r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match=f"^skipped {newest.name} .* and took step_000000128$"):
        resumed, _ = train(stopped.path, resume=True)
    assert_same_run(resumed, undisturbed)


# --- not the same, but sane -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_environments_that_cannot_be_pickled_go_on_with_new_episodes_after_a_dead_slot(tmp_path, monkeypatch):
    limit = ["environment.max_episode_steps=500"]
    stopped, _ = train(tmp_path / "run", Locked, more=limit, callbacks=[StopAt(HALF)])
    blocks, collect = [], HostCollector.collect

    def recorded(self, weights):
        blocks.append(collect(self, weights))
        return blocks[-1]

    monkeypatch.setattr(HostCollector, "collect", recorded)
    resumed, outcome = train(stopped.path, Locked, more=limit, resume=True)
    assert outcome.steps == STEPS
    first, second = blocks[0][0], blocks[1][0]
    assert first.dead[0].all()
    assert first.first[1].all()  # closes the old episode; a new one begins
    assert not second.dead[0].any() or first.terminated[-1].any()
    assert all(np.isfinite(weight).all() for weight in resumed.network("last").get_weights())


@pytest.mark.slow
def test_without_a_saved_replay_a_resumed_run_fills_it_before_it_learns(tmp_path):
    more = ["checkpoint.replay=false"]
    stopped, before = train(tmp_path / "run", more=more, callbacks=[StopAt(HALF)])
    assert before.updates == (HALF // BLOCK - STORED_FIRST) * GRADIENT_STEPS
    _, after = train(stopped.path, more=more, resume=True)
    assert after.updates == before.updates + ((STEPS - HALF) // BLOCK - STORED_FIRST) * GRADIENT_STEPS


# --- what ends a run ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reward_that_is_reached_ends_the_run(tmp_path):
    _, outcome = train(tmp_path / "run", Rewarding, more=["callbacks.stop_on_reward=10.0"])
    assert outcome.steps == 96  # the first evaluation
    assert "10" in outcome.reason


@pytest.mark.slow
def test_a_run_that_does_not_improve_ends(tmp_path):
    _, outcome = train(tmp_path / "run", Rewarding, more=["callbacks.early_stopping_patience=2"])
    assert outcome.steps == 3 * 96  # every return is 10: the first evaluation improves on nothing, then two do not
    assert outcome.reason != "finished"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path):
    more = ["environment.kwargs={reward = 3e38}", "training.learning_starts=160"]
    with pytest.raises(
        RunError, match=r"has diverged: the loss is not finite at step 160; the checkpoint of step 128 is"
    ):
        train(tmp_path / "run", Rewarding, more=more)
    run = Run.open(tmp_path / "run")
    assert all(np.isfinite(weight).all() for weight in run.network("last").get_weights())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*not within the observation space")  # says Gymnasium
def test_an_observation_that_is_no_number_ends_the_run_by_one_sentence(tmp_path):
    with pytest.raises(
        RunError, match="an observation or a reward that is not finite, by step 64; there is no checkpoint"
    ):
        train(tmp_path / "run", Rewarding, more=["environment.kwargs={observation = nan}"])


@pytest.mark.slow
def test_a_full_disk_ends_the_run_by_one_sentence_and_keeps_the_older_checkpoint(disk, undisturbed):
    path = disk / "run"
    with pytest.raises(RunError, match=r"is full, so .* could not be written; ") as error:
        train(path, callbacks=[Doing(128, lambda: fill(disk))])
    assert "\n" not in str(error.value)
    assert Run.open(path).checkpoints().restore().step == 64
    with pytest.raises(RunError, match="is full"):  # still
        train(path, resume=True)
    (disk / "filler").unlink()
    assert_same_run(train(path, resume=True)[0], undisturbed)


@pytest.mark.slow
def test_a_folder_that_became_read_only_ends_the_run_by_one_sentence(disk, undisturbed):
    path = disk / "run"
    train(path, callbacks=[StopAt(HALF)])
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(RunError, match=r"is read-only here, so .* could not be written; ") as error:
        train(path, resume=True)
    assert "\n" not in str(error.value)
    assert Run.open(path).checkpoints().restore().step == HALF
    with pytest.raises(RunError, match="is read-only here"):
        train(disk / "another")
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert_same_run(train(path, resume=True)[0], undisturbed)


# --- whose folder it is ---------------------------------------------------------------------------------------------


def test_a_folder_that_another_process_trains_in_is_refused(undisturbed):
    descriptor = os.open(undisturbed.path / ".lock", os.O_RDWR)  # an open file of its own counts like a process
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process works on"):
            train(undisturbed.path, resume=True)
    finally:
        os.close(descriptor)


def test_the_run_of_another_environment_is_refused(undisturbed):
    with pytest.raises(UserError, match="is a run of CartPole-v1, not of Acrobot-v1; choose another --out"):
        train(undisturbed.path, "Acrobot-v1", resume=True)


def test_the_run_of_another_configuration_is_refused_by_the_keys_that_differ(undisturbed):
    before = (undisturbed.path / "config.toml").read_bytes()
    with pytest.raises(UserError, match=r"is another run: agent.gamma, seed would change"):
        train(undisturbed.path, more=["agent.gamma=0.5"], seed=9, resume=True)
    assert (undisturbed.path / "config.toml").read_bytes() == before


def test_a_run_is_not_begun_over_another(undisturbed):
    with pytest.raises(UserError, match="holds a run already; go on with it by --resume, or choose another --out"):
        train(undisturbed.path)


def test_a_run_is_not_begun_among_foreign_files(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"is no run folder and not empty \(it holds thesis.tex\)"):
        train(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
