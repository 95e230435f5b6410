"""A configuration is typed and in range, or refused by a sentence that names the right key; it survives its file."""

import dataclasses
import itertools
import math
import pathlib
import re
import subprocess
import sys
import tomllib

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlplatform import config, errors, presets
from rlplatform.config import Config, EnvironmentConfig, Schedule, constant
from rlplatform.errors import UserError
from rlplatform.presets import resolve


def refused(message, **tree):
    """The tree is refused with exactly this sentence."""
    with pytest.raises(UserError) as caught:
        config.from_dict(tree)
    assert str(caught.value) == message


def numeric_fields():
    """`(key, field)` of every number with a range, in every section."""
    for section in dataclasses.fields(Config):
        for field in dataclasses.fields(section.default) if dataclasses.is_dataclass(section.default) else [section]:
            if any(field.metadata.get(bound) is not None for bound in ("low", "high", "above")):
                yield (field.name if field is section else f"{section.name}.{field.name}"), field


# --- what is refused, and how ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("replay.capcity", "replay.capacity"),
        ("capacity", "replay.capacity"),
        ("batch_size", "training.batch_size"),
        ("num_env", "environment.num_envs"),
        ("trainin.total_steps", "training"),
        ("sed", "seed"),
        ("exploration.epsilon.strat", "exploration.epsilon.start"),
        ("callbacks.stop_on_rewards", "callbacks.stop_on_reward"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_one(key, nearest):
    with pytest.raises(UserError, match=re.escape(f"did you mean {nearest!r}?")):
        resolve("CartPole-v1", overrides=[f"{key}=1"])


def test_a_key_like_no_other_is_refused_with_those_of_its_section():
    keys = "checkpoint.interval, checkpoint.keep, checkpoint.replay"
    refused(f"unknown key 'checkpoint.xyzzy'; choices: {keys}", checkpoint={"xyzzy": 1})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.total_steps", 1.5, "must be a whole number; got 1.5"),
        ("training.total_steps", "many", "must be a whole number; got 'many'"),
        ("training.total_steps", True, "must be a whole number; got True"),
        ("training.total_steps", math.inf, "must be a whole number; got inf"),
        ("training.total_steps", 10**30, f"must be a whole number; got {10**30}"),
        ("agent.gamma", "high", "must be a number; got 'high'"),
        ("agent.gamma", math.nan, "must be a number; got nan"),
        ("agent.double", 1, "must be true or false; got 1"),
        ("agent.double", "True", "must be true or false; got 'True'"),
        ("environment.id", 3, "must be a text; got 3"),
        ("network.hidden_units", 64, "must be a list like [256, 256]; got 64"),
        ("network.hidden_units", [64, "wide"], "must be a whole number; got 'wide'"),
        ("network.convolutions", 64, "must be a list like [[32, 8, 4], [64, 4, 2]]; got 64"),
        ("network.convolutions", [[64, "wide", 1]], "must be a whole number; got 'wide'"),
        ("environment.kwargs", 3, "must be a table like {gravity = -9.8}; got 3"),
        (
            "optimizer.learning_rate",
            "fast",
            "must be a number or a table like {kind = 'linear', start = 1.0, end = 0.1}",
        ),
        ("device", "gpus", "cannot be 'gpus'; did you mean 'gpu'?"),
        ("device", 0, "cannot be 0; choices: auto, cpu, gpu"),
        ("replay", 100, "is a section and needs keys of its own; got 100"),
        ("replay.capacity", {"x": 1}, "must be a whole number; got {'x': 1}"),
        ("exploration.epsilon", {"kind": "lineer"}, ".kind cannot be 'lineer'; did you mean 'linear'?"),
    ],
)
def test_a_wrong_type_is_refused_with_the_right_one(key, value, message):
    tree = value
    for part in reversed(key.split(".")):
        tree = {part: tree}
    with pytest.raises(UserError, match=re.escape(key) + " ?" + re.escape(message)):
        config.from_dict(tree)


@pytest.mark.parametrize("value", [[16, 3, 1], [[16, 3, 1], [16, 3]], [[16, 3, 1, 1]], [[]], ["16x3s1"]])
def test_a_convolution_that_is_no_list_of_three_is_refused(value):
    wrong = next(item for item in value if not isinstance(item, list) or len(item) != 3)
    words = "each item of network.convolutions must be filters, kernel size and stride of one convolution, like"
    refused(f"{words} [32, 8, 4]; got {wrong!r}", network={"convolutions": value})


def test_a_python_object_for_the_environment_is_refused_because_no_file_could_hold_it():
    refused(
        "environment.kwargs can hold texts, numbers, true, false, lists and tables only; got {'model': None}",
        environment={"kwargs": {"model": None}},
    )


@pytest.mark.parametrize(
    ("key", "field"), list(numeric_fields()), ids=lambda item: item if isinstance(item, str) else ""
)
def test_a_number_out_of_range_is_refused_with_the_range(key, field):
    low, high, above = (field.metadata[bound] for bound in ("low", "high", "above"))
    outside = [low - 1] if low is not None else [] if above is None else [above, above - 1]
    outside += [] if high is None else [high + 1]
    like = {"hidden_units": lambda number: [number], "convolutions": lambda number: [[16, number, 1]]}
    written = like.get(field.name, lambda number: number)
    for number in outside:
        with pytest.raises(UserError, match=f"{re.escape(key)} must be (at least|above|between|at most) ") as caught:
            resolve("X-v0", overrides=[f"{key}={written(number)}"])
        for bound in (low, high, above):
            assert bound is None or str(bound) in str(caught.value)


def test_every_bound_that_belongs_to_a_range_is_accepted():
    assert config.from_dict({"agent": {"gamma": 0, "tau": 1}}).agent.gamma == 0.0
    assert config.from_dict({"agent": {"gamma": 1}}).agent.gamma == 1.0
    assert config.from_dict({"agent": {"huber_delta": math.inf}}).agent.huber_delta == math.inf
    assert config.from_dict({"seed": 2**31 - 1}).seed == 2**31 - 1


def test_a_whole_number_may_be_written_as_a_float_and_the_other_way_round():
    made = config.from_dict({"replay": {"capacity": 1e5}, "agent": {"gamma": 1}})
    assert (made.replay.capacity, type(made.replay.capacity)) == (100_000, int)
    assert (made.agent.gamma, type(made.agent.gamma)) == (1.0, float)


def test_blocks_are_whole():
    refused(
        "training.train_interval must be a multiple of environment.num_envs (8); got 12, the nearest is 16",
        environment={"num_envs": 8},
        training={"train_interval": 12},
    )
    refused(
        "training.train_interval must be a multiple of environment.num_envs (8); got 1, the nearest is 8",
        environment={"num_envs": 8},
        training={"train_interval": 1},
    )
    made = config.from_dict({"environment": {"num_envs": 8}, "training": {"train_interval": 24}})
    assert made.block_steps == 3


def test_a_ring_that_cannot_hold_one_transition_and_a_block_is_refused_with_the_least_capacity():
    tree = {"environment": {"num_envs": 2, "frame_stack": 4}, "agent": {"n_step": 3}, "training": {"train_interval": 6}}
    least = 2 * (3 + 4) + 6
    config.from_dict(tree | {"replay": {"capacity": least}})
    with pytest.raises(UserError, match=f"replay.capacity must be at least {least} here .*; got {least - 1}"):
        config.from_dict(tree | {"replay": {"capacity": least - 1}})


def test_sequences_that_would_pass_rows_over_are_refused():
    tree = {"network": {"recurrent": "gru"}, "training": {"train_interval": 24}, "environment": {"num_envs": 2}}
    refused(
        "a recurrent network learns from sequences that begin where blocks do, so replay.sequence_length must be at "
        "least train_interval / num_envs (12); got 11",
        **tree,
        replay={"sequence_length": 11},
    )
    assert config.from_dict(tree | {"replay": {"sequence_length": 12}}).is_recurrent
    assert not config.from_dict({"training": {"train_interval": 1_000}}).is_recurrent


def test_a_ring_that_cannot_hold_one_sequence_and_a_block_is_refused_with_the_least_capacity():
    tree = {
        "network": {"recurrent": "lstm"},
        "environment": {"num_envs": 2},
        "agent": {"n_step": 3},
        "training": {"train_interval": 6},
    }
    replay = {"burn_in": 5, "sequence_length": 7}
    least = 2 * (5 + 7 + 3) + 6
    config.from_dict(tree | {"replay": replay | {"capacity": least}})
    with pytest.raises(UserError, match=f"at least {least} here .burn_in, sequence_length.*; got {least - 1}"):
        config.from_dict(tree | {"replay": replay | {"capacity": least - 1}})


# --- schedules ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"start": 0.1, "end": 0.2},
            "a constant schedule has only start; got end = 0.2, for which kind must be linear",
        ),
        ({"kind": "linear", "values": [1.0]}, "a linear schedule has only start and end and fraction; got values"),
        ({"kind": "piecewise", "start": 1.0}, "a piecewise schedule has only boundaries and values; got start = 1.0"),
        ({"kind": "exponential", "start": 1.0}, "an exponential schedule needs start and end above 0; got 1.0 and 0.0"),
        ({"kind": "piecewise", "values": [1.0, 0.5]}, "one value more than boundaries; got 2 values and 0 boundaries"),
        (
            {"kind": "piecewise", "boundaries": [0.5, 0.2], "values": [1.0, 0.5, 0.1]},
            "piecewise boundaries must rise; got [0.5, 0.2]",
        ),
    ],
)
def test_a_schedule_whose_parts_do_not_fit_its_kind_is_refused_under_its_key(table, message):
    with pytest.raises(UserError, match="^exploration.epsilon: .*" + re.escape(message)):
        config.from_dict({"exploration": {"epsilon": table}})


@pytest.mark.parametrize(
    ("table", "part"),
    [
        (1.5, ""),
        ({"kind": "linear", "start": 2.0, "end": 0.1}, ".start"),
        ({"kind": "cosine", "start": 1.0, "end": -0.1}, ".end"),
        ({"kind": "piecewise", "boundaries": [0.5], "values": [1.0, 7.0]}, ".values"),
    ],
)
def test_every_value_of_a_schedule_keeps_to_the_range_of_what_it_schedules(table, part):
    with pytest.raises(UserError, match=f"^exploration.epsilon{part} must be between 0.0 and 1.0; got "):
        config.from_dict({"exploration": {"epsilon": table}})


def test_one_part_of_a_schedule_is_changed_alone():
    default = resolve("X-v0").exploration.epsilon
    changed = resolve("X-v0", overrides=["exploration.epsilon.end=0.01"]).exploration.epsilon
    assert changed == dataclasses.replace(default, end=0.01)


def test_a_number_becomes_a_moving_schedule_from_there_in_any_order_of_the_overrides():
    overrides = ["optimizer.learning_rate.end=0.0", "optimizer.learning_rate.kind=cosine"]
    expected = Schedule(kind="cosine", start=Config().optimizer.learning_rate.start, end=0.0)
    for order in (overrides, overrides[::-1]):
        assert resolve("X-v0", overrides=order).optimizer.learning_rate == expected


def test_a_schedule_of_another_kind_keeps_the_parts_that_both_have():
    default = resolve("X-v0").exploration.epsilon
    changed = resolve("X-v0", overrides=["exploration.epsilon.kind=cosine"]).exploration.epsilon
    assert changed == dataclasses.replace(default, kind="cosine")
    changed = resolve("X-v0", overrides=["exploration.epsilon.kind=constant"]).exploration.epsilon
    assert changed == constant(default.start)


def test_a_schedule_is_replaced_whole_by_a_number_or_another_schedule():
    assert resolve("X-v0", overrides=["exploration.epsilon=0.2"]).exploration.epsilon == constant(0.2)
    table = "exploration.epsilon={kind='piecewise', boundaries=[0.5], values=[1.0, 0.1]}"
    expected = Schedule(kind="piecewise", boundaries=(0.5,), values=(1.0, 0.1))
    assert resolve("X-v0", overrides=[table]).exploration.epsilon == expected
    assert resolve("X-v0", exploration={"epsilon": expected}).exploration.epsilon == expected


# --- merging --------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        "[preset]\ndescription = 'mine'\n[environment]\nnum_envs = 2\nkwargs = {gravity = -9.8, wind = true}\n"
        "[training]\ntrain_interval = 8\nbatch_size = 64\n[exploration.epsilon]\nend = 0.02\n"
    )
    return str(path)


def test_later_sources_go_over_earlier_ones_key_by_key(own_preset):
    made = resolve(
        "X-v0",
        preset=own_preset,
        overrides=["training.batch_size=256", "environment.kwargs.wind=false", "environment.id=Y-v0"],
        training={"batch_size": 128, "gradient_steps": 2},
        seed=7,
        device=None,
    )
    assert made == Config().replace(
        seed=7,
        environment={"id": "Y-v0", "num_envs": 2, "kwargs": {"gravity": -9.8, "wind": False}},
        training={"train_interval": 8, "batch_size": 256, "gradient_steps": 2},
        exploration={"epsilon": Schedule(kind="linear", start=1.0, end=0.02, fraction=0.1)},
    )


def test_a_keyword_of_the_environment_may_have_any_name():
    overrides = ["environment.kwargs.kind=tall", "environment.kwargs.deep={kind='x', size=[1, 2]}"]
    made = resolve("X-v0", overrides=[*overrides, "environment.kwargs.deep.kind=y"])
    assert made.environment.kwargs == {"kind": "tall", "deep": {"kind": "y", "size": [1, 2]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("'3'", "3"),
        ("CartPole-v1", "CartPole-v1"),
        ("", ""),
        ("a=b", "a=b"),
        ("[1, 2]", [1, 2]),
        ("1e-3", 1e-3),
    ],
)
def test_an_override_is_toml_or_else_a_text(text, value):
    made = resolve("X-v0", overrides=[f" environment.kwargs.it = {text} "])
    assert made.environment.kwargs == {"it": value}


@pytest.mark.parametrize("text", ["replay.capacity", "=3", ""])
def test_an_override_without_key_and_value_is_refused_with_an_example(text):
    with pytest.raises(UserError, match=f"--set needs key=value, like replay.capacity=100000; got {text!r}"):
        resolve("X-v0", overrides=[text])


def test_a_copy_changes_what_is_named_and_nothing_else():
    first = Config().replace(environment={"id": "X-v0", "kwargs": {"a": [1]}})
    second = first.replace(environment={"kwargs": {"b": 2}}, exploration={"epsilon": {"fraction": 0.5}}, seed=1)
    assert second.environment == EnvironmentConfig(id="X-v0", kwargs={"a": [1], "b": 2})
    assert second.exploration.epsilon == Schedule(kind="linear", start=1.0, end=0.05, fraction=0.5)
    assert (first.seed, second.seed) == (0, 1)
    assert first.environment.kwargs == {"a": [1]}
    assert first.replace(environment=EnvironmentConfig(id="Y-v0", num_envs=2)).environment.num_envs == 2


def test_a_configuration_is_changed_in_the_ways_of_a_new_one():
    first = Config().replace(environment={"id": "X-v0"}, exploration={"epsilon": 0.5})
    changed = config.change(
        first, ["exploration.epsilon.kind=linear", "seed=3"], training={"total_steps": 9}, seed=None
    )
    assert changed == first.replace(
        seed=3, training={"total_steps": 9}, exploration={"epsilon": Schedule(kind="linear", start=0.5)}
    )
    with pytest.raises(UserError, match="unknown key 'sed'; did you mean 'seed'"):
        config.change(first, ["sed=3"])


def test_the_keys_that_differ_are_named_in_order():
    first = Config().replace(environment={"id": "X-v0", "kwargs": {"a": 1}})
    second = first.replace(seed=1, environment={"kwargs": {"a": 2, "b": 3}}, exploration={"epsilon": {"end": 0.01}})
    assert config.differences(first, first) == []
    assert config.differences(first, second) == [
        "environment.kwargs.a",
        "environment.kwargs.b",
        "exploration.epsilon.end",
        "seed",
    ]
    assert config.differences(first, second) == config.differences(second, first)
    constant_one = first.replace(exploration={"epsilon": 1.0})
    assert "exploration.epsilon" in config.differences(first, constant_one)


def test_a_copy_is_checked_like_any_other():
    with pytest.raises(UserError, match=r"environment\.num_envs must be between 1 and 4096; got -1"):
        Config().replace(environment=EnvironmentConfig(num_envs=-1))


def test_the_tree_of_a_configuration_shares_nothing_with_it():
    made = config.from_dict({"environment": {"kwargs": {"list": [1]}}})
    config.to_dict(made)["environment"]["kwargs"]["list"].append(2)
    assert made.environment.kwargs == {"list": [1]}


# --- presets --------------------------------------------------------------------------------------------------------


def test_every_shipped_preset_says_what_it_is_for_and_makes_a_configuration():
    shipped = presets.shipped()
    assert {"dqn", "double"} <= set(shipped)
    for name, tree in shipped.items():
        about = tree["preset"]
        assert {"description"} <= set(about) <= {"description", "extends", "environments"}, name
        assert isinstance(about["description"], str)
        assert about.get("extends", "dqn") in shipped
        assert "id" not in tree.get("environment", {})
    tuned = {env_id for tree in shipped.values() for env_id in tree.get("environments", {})}
    assert "CartPole-v1" in tuned
    for name, env_id in itertools.product(shipped, [*tuned, "X-v0"]):
        assert resolve(env_id, preset=name).environment.id == env_id


def test_every_shipped_preset_turns_on_the_parts_that_its_paper_names():
    def parts(name):
        made = resolve("ALE/Pong-v5", preset=name)
        flags = {"double": made.agent.double, "dueling": made.network.dueling, "noisy": made.network.noisy}
        flags |= {"prioritized": made.replay.prioritized, "munchausen": made.agent.munchausen}
        return made.agent.head, made.agent.n_step, {flag for flag, on in flags.items() if on}

    assert parts("dqn") == ("scalar", 1, set())
    assert parts("double") == ("scalar", 1, {"double"})
    assert parts("dueling") == ("scalar", 1, {"double", "dueling"})
    assert parts("per") == ("scalar", 1, {"double", "prioritized"})
    assert parts("munchausen")[0::2] == ("scalar", {"double", "munchausen"})
    assert parts("c51")[0] == "categorical"
    assert parts("qrdqn")[0] == "quantile"
    assert parts("iqn")[0] == "implicit_quantile"
    assert parts("rainbow") == ("categorical", 3, {"double", "dueling", "noisy", "prioritized"})
    assert parts("btr")[0] == "implicit_quantile"
    unpruned, pruned = (resolve("CartPole-v1", preset=name) for name in ("dqn", "pruned"))
    assert config.differences(unpruned, pruned) == ["prune.final_sparsity"]
    assert parts("btr")[2] >= {"dueling", "noisy", "prioritized", "munchausen"}


def test_an_environment_takes_the_preset_that_lists_it_and_all_others_the_general_one(shipping):
    shipping(own={"preset": {"environments": ["Mine-v0"]}, "seed": 5}, double={"preset": {}, "seed": 6})
    assert resolve("Mine-v0").seed == 5
    assert resolve("Unheard-v0").seed == 6


@pytest.fixture
def shipping(monkeypatch):
    """Ships other presets than the real ones."""

    def ship(**trees):
        monkeypatch.setattr(presets, "shipped", lambda: trees)

    return ship


def test_a_preset_goes_over_the_one_that_it_extends_and_what_is_for_one_environment_over_what_is_for_all(shipping):
    shipping(
        low={
            "seed": 1,
            "agent": {"gamma": 0.1, "n_step": 2, "tau": 0.5},
            "environments": {"Mine-v0": {"agent": {"n_step": 4, "tau": 0.25}, "threads": 3}},
        },
        middle={"preset": {"extends": "low"}, "agent": {"gamma": 0.2, "n_step": 3}},
        high={
            "preset": {"extends": "middle"},
            "agent": {"gamma": 0.3},
            "environments": {"Mine-v0": {"threads": 4}, "Other-v0": {"seed": 9}, "O*-v0": {"seed": 8, "threads": 5}},
        },
    )
    mine, any_other = (resolve(env_id, preset="high") for env_id in ("Mine-v0", "X-v0"))
    assert (mine.seed, mine.agent.gamma, mine.agent.n_step, mine.agent.tau, mine.threads) == (1, 0.3, 4, 0.25, 4)
    assert (any_other.seed, any_other.agent.n_step, any_other.agent.tau, any_other.threads) == (1, 3, 0.5, 0)
    other, like_it = (resolve(env_id, preset="high") for env_id in ("Other-v0", "Orion-v0"))
    assert (other.seed, other.threads) == (9, 5)  # the pattern, and the id over it, wherever it stands
    assert (like_it.seed, like_it.threads) == (8, 5)
    assert resolve("Mine-v0", preset="middle").threads == 3


def test_a_preset_of_ones_own_extends_a_shipped_one(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text('seed = 3\n[preset]\nextends = "rainbow"\n[environments."CartPole-v1".agent]\nn_step = 5\n')
    made = resolve("CartPole-v1", preset=str(file))
    shipped = resolve("CartPole-v1", preset="rainbow")
    assert config.differences(made, shipped) == ["agent.n_step", "seed"]


def test_a_preset_that_extends_nothing_known_or_itself_is_refused(shipping):
    shipping(
        one={"preset": {"extends": "two"}},
        two={"preset": {"extends": "one"}},
        lost={"preset": {"extends": "tow"}},
    )
    for name, said in (("lost", "cannot extend 'tow'; did you mean 'two'"), ("one", "cannot extend 'two'")):
        with pytest.raises(UserError, match=said):
            resolve("X-v0", preset=name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preset = 3", "preset is a section"),
        ("environments = 3", "environments is a section"),
        ('[environments]\n"X-v0" = 3', "environments.X-v0 is a section"),
        ("[preset]\nextends = [1]", r"cannot extend \[1\]"),
    ],
)
def test_a_preset_of_ones_own_with_a_wrong_form_is_refused(tmp_path, text, said):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(UserError, match=said):
        resolve("X-v0", preset=str(tmp_path / "own.toml"))


@pytest.mark.parametrize("bounds", [(-math.inf, 10.0), (0.0, math.inf), (1.0, 1.0), (2.0, 1.0)])
def test_atoms_need_two_different_finite_ends(bounds):
    low, high = bounds
    with pytest.raises(UserError, match=r"agent\.v_"):
        config.Config().replace(agent={"v_min": low, "v_max": high})


def test_an_unknown_preset_is_refused_with_the_nearest_and_all_others():
    names = ", ".join(presets.shipped())
    with pytest.raises(UserError) as caught:
        resolve("CartPole-v1", preset="dqm")
    assert str(caught.value) == f"unknown preset 'dqm' for CartPole-v1; did you mean 'dqn'? presets: {names}"
    with pytest.raises(UserError) as caught:
        resolve("CartPole-v1", preset="xyzzy")
    assert str(caught.value) == f"unknown preset 'xyzzy' for CartPole-v1; presets: {names}"


def test_reading_the_presets_loads_no_tensorflow():
    program = (
        "import sys; from rlplatform import presets; assert presets.shipped(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "^there is no file .*config.toml$"),
        (b"seed = ", "config.toml is not TOML: "),
        (b"\xff\xfe", "config.toml is not TOML: "),
        (b"sede = 3", "config.toml: unknown key 'sede'; did you mean 'seed'\\?$"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused_by_its_name(tmp_path, content, message):
    path = tmp_path / "config.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        config.load(path)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        config.load(tmp_path)


def test_the_saved_configuration_names_every_key_but_the_parts_of_schedules():
    tree = tomllib.loads(config.to_toml(Config()))
    named = {f"{section}.{key}" for section, keys in tree.items() if isinstance(keys, dict) for key in keys} | set(tree)
    assert named == {key for key in config.all_keys() if key.count(".") < 2}


numbers = st.floats(0.0, 1.0)
positive = st.floats(1e-300, 1.0)


@st.composite
def schedules(draw):
    kind = draw(st.sampled_from(["constant", "linear", "cosine", "exponential", "piecewise"]))
    if kind == "constant":
        return constant(draw(numbers))
    if kind == "piecewise":
        boundaries = draw(st.lists(numbers, max_size=4))
        values = draw(st.lists(numbers, min_size=len(boundaries) + 1, max_size=len(boundaries) + 1))
        return Schedule(kind=kind, boundaries=tuple(sorted(boundaries)), values=tuple(values))
    ends = positive if kind == "exponential" else numbers
    return Schedule(kind=kind, start=draw(ends), end=draw(ends), fraction=draw(numbers))


widths = st.integers(1, 65536)
toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def trees(draw):
    num_envs = draw(st.integers(1, 4096))
    return {
        "seed": draw(st.integers(0, 2**31 - 1)),
        "device": draw(st.sampled_from(["auto", "cpu", "gpu"])),
        "environment": {
            "id": draw(st.text()),
            "num_envs": num_envs,
            "kwargs": draw(st.dictionaries(st.text(), toml_values, max_size=3)),
        },
        "network": {
            "hidden_units": draw(st.lists(widths, max_size=4)),
            "convolutions": draw(st.lists(st.tuples(widths, widths, widths), max_size=3)),
            "dueling": draw(st.booleans()),
        },
        "replay": {"capacity": draw(st.integers(10**8, 2**63 - 1))},
        "agent": {"huber_delta": draw(st.floats(0.0, exclude_min=True)), "gamma": draw(numbers)},
        "optimizer": {"learning_rate": draw(schedules())},
        "exploration": {"epsilon": draw(schedules())},
        "training": {"train_interval": num_envs * draw(st.integers(1, 100))},
        "callbacks": {"stop_on_reward": draw(st.floats(allow_nan=False))},
    }


@given(tree=trees())
def test_any_configuration_survives_its_file(tree, tmp_path_factory):
    made = Config().replace(**tree)
    path = pathlib.Path(tmp_path_factory.mktemp("run"), "config.toml")
    path.write_text(config.to_toml(made), encoding="utf-8")
    assert config.load(path) == made
    assert config.from_dict(config.to_dict(made)) == made
    assert made.replace() == made
    assert made.network.hidden_units == tuple(tree["network"]["hidden_units"])
    assert made.network.convolutions == tuple(tree["network"]["convolutions"])
    assert made.optimizer.learning_rate == tree["optimizer"]["learning_rate"]


@given(name=st.sampled_from(config.all_keys()), data=st.data())
def test_a_key_with_one_letter_missing_is_found_again(name, data):
    *sections, last = name.split(".")
    hypothesis.assume(len(last) > 4)
    hole = data.draw(st.integers(0, len(last) - 1))
    tree = {last[:hole] + last[hole + 1 :]: 1}
    for section in reversed(sections):
        tree = {section: tree}
    with pytest.raises(UserError, match=re.escape(f"did you mean {name!r}?")):
        config.from_dict(tree)


def test_a_choice_like_no_other_is_answered_with_all_of_them():
    assert errors.nearest("xyzzy", ["one", "two"]) == "choices: one, two"
    assert errors.nearest("tow", ["one", "two"]) == "did you mean 'two'?"
