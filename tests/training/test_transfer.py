"""Transfer: which layers are taken over, which stay as they are, and when they learn."""

import numpy as np
import pytest
import tf_keras as keras
from numpy.testing import assert_array_equal
from quick import QUICK

from rlplatform import api, config
from rlplatform.agents import networks
from rlplatform.agents.freezing import freeze
from rlplatform.config import Config
from rlplatform.errors import UserError
from rlplatform.training.transfer import Layer, freezable, load_source, match, take_over

DEEP = [*QUICK, "network.hidden_units=[8, 6]", "training.total_steps=128"]


def network(shape=(4,), actions=2, seed=0, **settings):
    keras.utils.set_random_seed(seed)
    made = Config().replace(network={"hidden_units": [8, 6]} | settings)
    return networks.build(made, shape, "float32", actions)


def from_source(source, **transfer):
    return Config().replace(transfer={"source": str(source)} | transfer)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "run"
    return api.train("CartPole-v1", preset="dqn", seed=1, out=path, overrides=DEEP, progress=False)


def test_layers_of_the_same_shapes_are_taken_over_in_order():
    layers = take_over(new := network(seed=1), old := network())
    assert [layer.source for layer in layers] == ["dense_0", "dense_1", "q_values"] or all(
        layer.source == layer.name for layer in layers
    )
    for one, other in zip(new.get_weights(), old.get_weights(), strict=True):
        assert_array_equal(one, other)


def test_what_differs_begins_fresh_and_what_follows_is_still_found():
    found = match(network(shape=(6,), actions=3), network())
    assert [layer.source is not None for layer in found] == [False, True, False]
    assert freezable(found) == 2
    assert freezable(match(network(), network())) == 2  # the last layer always learns
    assert freezable([Layer("a", None), Layer("b", None), Layer("c", "x")]) == 0


def test_a_keras_file_is_a_source_too(tmp_path):
    own = keras.Sequential([keras.Input([4]), keras.layers.Dense(8, name="mine"), keras.layers.Dense(5)])
    own.save(tmp_path / "own.keras")
    found = match(network(), load_source(from_source(tmp_path / "own.keras")))
    assert [layer.source for layer in found] == ["mine", None, None]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("nowhere.keras", "there is no file"),
        ("policy.tflite", "must be a run's folder, a .keras file or"),
        (".", "is not a run folder"),
    ],
)
def test_what_is_no_source_is_refused_in_a_sentence(source, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        load_source(from_source(source))


def test_a_source_without_a_layer_that_fits_is_refused():
    with pytest.raises(UserError, match=r"no layer of the source has the shape .* dense_0 \[3, 8\]"):
        take_over(network(), network(shape=(3,), actions=7, hidden_units=[8, 9]))


TUNED = {"frozen_layers": 2, "fine_tuned_layers": 1, "fine_tune_rate": 0.1, "fine_tune_from": 0.5}


def test_shares_of_the_learning_rate_by_hand():
    made = from_source("x", **TUNED).replace(
        training={"total_steps": 400, "train_interval": 4, "gradient_steps": 2, "learning_starts": 80}
    )
    built = network()
    found = freeze(built, made)
    assert found.before == [0.0, 0.0, 1.0, 1.0]  # kernel and bias of the second and the third layer
    assert found.after == [0.1, 0.1, 1.0, 1.0]
    assert found.turn == 81  # half of the 2 * 81 updates: 19 of the 100 blocks are only stored
    assert [layer.trainable for layer in built.layers if layer.weights] == [False, True, True]


def test_where_nothing_turns_there_are_no_shares():
    built = network()
    assert freeze(built, from_source("x", frozen_layers=2)) is None
    assert [layer.trainable for layer in built.layers if layer.weights] == [False, False, True]
    for made in (from_source("x", frozen_layers=0), Config()):
        assert freeze(built := network(), made) is None
        assert len(built.trainable_variables) == 6


def test_a_network_of_which_nothing_would_learn_is_refused():
    with pytest.raises(UserError, match=r"frozen_layers must be below 3, .* got 7"):
        freeze(network(), from_source("x", frozen_layers=7))


def test_the_last_layer_learns_though_statistics_of_observations_come_first():
    built = network(normalize_observations=True)
    count = freezable(match(built, network(normalize_observations=True)))
    freeze(built, from_source("x", frozen_layers=count))
    assert [variable.name for variable in built.trainable_variables] == ["q/kernel:0", "q/bias:0"]


def weights(run):
    return {layer.name: layer.get_weights() for layer in run.network("last").layers if layer.weights}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fine_tune", "learning_starts", "moves"),
    [(0, 32, [False, False, True]), (1, 32, [False, True, True]), (1, 96, [False, True, True])],
)
def test_frozen_layers_stay_and_fine_tuned_ones_move_later(source, tmp_path, fine_tune, learning_starts, moves):
    """Also where learning begins so late that half of the updates are fewer than those of a quarter of the steps."""
    run, outcome = api.transfer(
        source,
        "rlplatform.envs.variants:HeavyCartPole",
        fine_tune=fine_tune,
        seed=2,
        out=tmp_path / "run",
        overrides=[
            *(setting for setting in DEEP if not setting.startswith("network.")),
            f"training.learning_starts={learning_starts}",
        ],
        progress=False,
    )
    assert outcome.updates == run.config.total_updates
    assert run.config.transfer.frozen_layers == 2
    assert run.config.network == source.config.network
    before, after = source.network("best"), weights(run)
    layers = [layer for layer in before.layers if layer.weights]
    moved = [
        any(not np.array_equal(a, b) for a, b in zip(layer.get_weights(), after[layer.name], strict=True))
        for layer in layers
    ]
    assert moved == moves


class Units:
    """What a run's rewards and observations are normalised by when it begins."""

    def on_train_begin(self, run):
        kept = run._learner.agent.normalization.statistics()
        self.found = {name: float(variable) for name, variable in kept.items()}

    def __getattr__(self, name):
        return lambda *_: None


@pytest.mark.slow
def test_values_that_are_taken_over_keep_their_units(tmp_path):
    """And so do standardised observations, unless their layer begins fresh; a `.keras` file has no units to give."""
    normal = ["agent.normalize_rewards=true", "network.normalize_observations=true", *DEEP]
    source = api.train("CartPole-v1", preset="dqn", out=tmp_path / "source", overrides=normal, progress=False)
    saved = source.checkpoints().restore("agent/normalization/").variables
    settings = [setting for setting in normal if not setting.startswith("network.")]

    def at_first(origin, target, name, overrides):
        units = Units()
        options = {"preset": "dqn", "progress": False, "callbacks": [units], "out": tmp_path / name}
        api.transfer(origin, target, freeze=0, overrides=[*overrides, "training.total_steps=32"], **options)
        return units.found

    shape = ["network.hidden_units=[8, 6]", "network.normalize_observations=true"]
    found = at_first(source, "rlplatform.envs.variants:HeavyCartPole", "same", [*settings, *shape])
    assert found["observations"] >= 128
    assert found["returns"] > 100
    assert {found["mean"], found["variance"]} <= {float(array) for array in saved.values() if array.shape == ()}
    fewer = at_first(source, "rlplatform.envs.memory:HiddenVelocityCartPole", "fewer", [*settings, *shape])
    assert fewer == found | {"observations": 0.0}
    file = tmp_path / "own.keras"
    source.network("best").save(file)
    fresh = {"observations": 0.0, "returns": 0.0, "mean": 0.0, "variance": 1.0}
    assert at_first(file, "CartPole-v1", "file", [*settings, *shape]) == fresh


@pytest.mark.slow
def test_a_transferred_run_goes_on_without_its_source(source, tmp_path):
    settings = [setting for setting in DEEP if not setting.startswith("network.")]
    copy = tmp_path / "copy"
    network_file = copy / "own.keras"
    copy.mkdir()
    source.network("best").save(network_file)
    options = {"preset": "dqn", "out": tmp_path / "run", "progress": False, "seed": 2}
    shape = "network.hidden_units=[8, 6]"
    api.transfer(network_file, "CartPole-v1", overrides=[*settings, shape], **options)
    network_file.unlink()
    longer = [*(setting for setting in settings if "total_steps" not in setting), shape, "training.total_steps=192"]
    run, outcome = api.transfer(network_file, "CartPole-v1", overrides=longer, resume=True, **options)
    assert (outcome.steps, outcome.reason) == (192, "finished")
    assert config.load(run.path / "config.toml").transfer.frozen_layers == 2
