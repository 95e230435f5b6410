"""What a sweep varies: around a preset, from a file, and what becomes of a configuration."""

import pathlib
import re

import pytest

from rlplatform import config, search_space
from rlplatform.config import to_dict
from rlplatform.errors import UserError
from rlplatform.presets import resolve, shipped
from rlplatform.search_space import Range, applied, default_space

PRESETS = sorted(shipped())


@pytest.fixture
def read(tmp_path):
    def read_it(text, base=None):
        (tmp_path / "space.toml").write_text(text)
        return search_space.read(tmp_path / "space.toml", base or resolve("CartPole-v1", "dqn"))

    return read_it


@pytest.mark.parametrize("env_id", ["CartPole-v1", "LunarLander-v3", "Nowhere-v0"])
@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_space_is_valid_and_contains_every_preset(preset, env_id):
    base = resolve(env_id, preset)
    space = default_space(base)
    search_space.check(space, base)
    tree = to_dict(base)
    for key, entry in space.items():
        value = tree
        if key == "updates_per_step":
            value = base.training.gradient_steps / base.training.train_interval
        else:
            for part in key.split("."):
                value = value[part]
        assert entry.low <= value <= entry.high if isinstance(entry, Range) else value in entry, key


def test_the_update_budget_is_bounded():
    base = resolve("CartPole-v1", "dqn", ["training.train_interval=64", "training.gradient_steps=32"])
    entry = default_space(base)["updates_per_step"]
    assert (entry.low, entry.high) == (0.125, 1.0)
    for interval in default_space(base)["training.train_interval"]:
        tried = applied(base, {"updates_per_step": 1.0, "training.train_interval": interval})
        assert tried.training.gradient_steps == tried.training.train_interval == interval
    assert applied(base, {"updates_per_step": 1e-3}).training.gradient_steps == 1


def test_intervals_are_multiples_of_the_environments():
    base = resolve("CartPole-v1", "dqn", ["environment.num_envs=6", "training.train_interval=12"])
    assert all(interval % 6 == 0 for interval in default_space(base)["training.train_interval"])


def test_noise_takes_the_place_of_epsilon_and_a_soft_target_that_of_the_interval():
    hard = default_space(resolve("CartPole-v1", "dqn", ["agent.tau=1.0"]))
    soft = default_space(resolve("CartPole-v1", "dqn", ["agent.tau=0.01", "network.noisy=true"]))
    assert "exploration.epsilon.end" in hard
    assert not any(key.startswith("exploration.") for key in soft)
    assert ("agent.target_update_interval" in hard, "agent.tau" in hard) == (True, False)
    assert ("agent.target_update_interval" in soft, "agent.tau" in soft) == (False, True)


def test_a_trials_values_go_into_the_configuration_and_a_schedule_keeps_its_kind():
    base = resolve("CartPole-v1", "dqn", ["optimizer.learning_rate={kind='linear', start=1e-3, end=0.0}"])
    assert "optimizer.learning_rate.start" in default_space(base)
    tried = applied(base, {"optimizer.learning_rate.start": 5e-4, "agent.n_step": 5, "network.hidden_units": [8, 4]})
    assert tried.optimizer.learning_rate == config.Schedule(kind="linear", start=5e-4, end=0.0)
    assert (tried.agent.n_step, tried.network.hidden_units) == (5, (8, 4))
    assert config.differences(base, tried) == ["agent.n_step", "network.hidden_units", "optimizer.learning_rate.start"]


def test_a_file_is_the_whole_space_with_quoted_keys_or_tables(read):
    space = read('"optimizer.learning_rate" = {low = 1e-4, high = 1e-2, log = true}\n[agent]\nn_step = [1, 3, 5]')
    assert space == {"optimizer.learning_rate": Range(1e-4, 1e-2, log=True), "agent.n_step": [1, 3, 5]}
    assert read("replay.capacity = {low = 1000, high = 5000, step = 1000}") == {
        "replay.capacity": Range(1_000, 5_000, step=1_000)
    }


def test_a_file_may_go_over_the_default_space(read):
    base = resolve("CartPole-v1", "dqn")
    space = read('extends = "default"\n"agent.gamma" = false\n"agent.n_step" = [2, 4]', base)
    default = default_space(base)
    del default["agent.gamma"]
    assert space == default | {"agent.n_step": [2, 4]}


def test_what_is_written_is_read_back(read, tmp_path):
    import tomli_w

    base = resolve("Acrobot-v1", "rainbow")
    assert read(tomli_w.dumps(search_space.to_plain(default_space(base))), base) == default_space(base)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("agent.n_step = [1,", "cannot be read"),
        ("", "varies nothing"),
        ('extends = "dqn"', "extend 'default' only; got 'dqn'"),
        ("agent.n_step = 3", "agent.n_step needs a list of choices"),
        ("agent.n_step = []", "agent.n_step needs a list of choices"),
        (
            "agent.gamma = {low = 0.9, hihg = 0.99}",
            "unknown part 'hihg' of the range of agent.gamma; did you mean 'high'",
        ),
        ("agent.gamma = {low = 0.9}", "needs low and high"),
        ("agent.gamma = {low = 0.99, high = 0.9}", "needs low below high"),
        ("agent.tau = {low = 0.0, high = 0.9, log = true}", "needs low above 0"),
        ("agent.tau = {low = 0.1, high = 0.9, log = 1}", "log must be true or false"),
        ("agent.tau = {low = 0.1, high = 0.9, step = 0}", "step must be a number above 0"),
        ("agent.tau = {low = 0.1, high = 0.9, log = true, step = 0.1}", "log or step, not both"),
        ("agent.gama = [0.9]", "unknown key 'agent.gama' in the space; did you mean 'agent.gamma'"),
        ("updates_per_setp = [0.9]", "did you mean 'updates_per_step'"),
        ("updates_per_step = [0.0]", "updates_per_step must be above 0"),
        ("agent.gamma = [0.9, 1.5]", "in the space: agent.gamma must be between 0.0 and 1.0; got 1.5"),
        ("agent.gamma = {low = 0.9, high = 1.5}", "in the space: agent.gamma must be between 0.0 and 1.0; got 1.5"),
        ("agent.n_step = {low = 1.0, high = 5.0}", "agent.n_step must be a whole number"),
        ("updates_per_step = [0.5]\ntraining.gradient_steps = [1, 2]", "vary one of the two"),
    ],
)
def test_a_wrong_space_is_refused_by_one_sentence(read, text, sentence):
    base = resolve("CartPole-v1", "dqn")
    with pytest.raises(UserError, match=sentence):
        search_space.check(read(text, base), base)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        search_space.read(tmp_path / "space.toml", resolve("CartPole-v1", "dqn"))


def test_the_space_in_the_documentation_is_one(read):
    page = (pathlib.Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    base = resolve("CartPole-v1", "dqn")
    space = read(shown, base)
    search_space.check(space, base)
    assert space["updates_per_step"] == Range(0.1, 1.0, log=True)
    assert "agent.gamma" not in space
