"""How observations become vectors: against Gymnasium's own flattening, and against layouts written down by hand."""

import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from rlplatform.envs.flattening import Flattening
from rlplatform.envs.layout import LARGEST, layout_of, notes, space_of
from rlplatform.errors import UserError


class Mission(spaces.Space[str]):
    """Strings of a space of one's own, as MiniGrid's missions are."""

    def __init__(self) -> None:
        super().__init__(dtype=str)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        return "go"


def boxes() -> st.SearchStrategy[Any]:
    shapes = st.lists(st.integers(1, 3), max_size=3).map(tuple)
    kinds = st.sampled_from([np.float32, np.float64, np.int16, np.uint8, np.bool_])
    return st.builds(lambda shape, dtype: spaces.Box(0, 1 if dtype is np.bool_ else 9, shape, dtype), shapes, kinds)


def discretes() -> st.SearchStrategy[Any]:
    return st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 6), st.integers(-4, 4))


def multi_discretes() -> st.SearchStrategy[Any]:
    sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(-3, 3)), min_size=1, max_size=3)
    return sizes.map(lambda parts: spaces.MultiDiscrete([n for n, _ in parts], start=[start for _, start in parts]))


LEAVES = st.one_of(
    boxes(),
    discretes(),
    multi_discretes(),
    st.just(spaces.MultiDiscrete([[2, 3], [4, 2]])),
    st.integers(1, 4).map(spaces.MultiBinary),
    st.just(spaces.MultiBinary((2, 2))),
)
NESTED = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abcd"), parts, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=6,
)


@given(space=NESTED, seed=st.integers(0, 999), count=st.integers(1, 4))
@settings(max_examples=150)
def test_vectors_are_those_of_gymnasium_for_one_and_for_many(space: Any, seed: int, count: int) -> None:
    layout = layout_of(space, "mine")
    if layout is None or not layout["flat"]:  # a single Box stays as it is
        return
    assert json.loads(json.dumps(layout)) == layout
    flattening, box = Flattening(layout), space_of(layout, space)
    assert (box.shape, box.dtype) == (spaces.flatten_space(space).shape, np.float32)
    space.seed(seed)
    observations = [space.sample() for _ in range(count)]
    expected = [spaces.flatten(space, observation).astype(np.float32) for observation in observations]
    for observation, vector in zip(observations, expected, strict=True):
        assert_array_equal(flattening.one(observation), vector)
        assert flattening.one(observation).dtype == np.float32
        assert box.contains(flattening.one(observation))
    together = concatenate(space, observations, create_empty_array(space, count))
    many = flattening.many(together, count)
    assert_array_equal(many, expected)
    assert many.dtype == np.float32


@given(space=NESTED, seed=st.integers(0, 99))
@settings(max_examples=50)
def test_an_observation_can_be_flattened_from_the_recorded_layout_alone(space: Any, seed: int) -> None:
    """What a bundle's user does, with numpy and the rules that the layout's description gives."""
    layout = layout_of(space, "mine")
    if layout is None or not layout["flat"]:
        return
    space.seed(seed)
    observation = space.sample()
    vector = np.zeros(sum(entry["length"] for entry in layout["entries"]))
    for entry in layout["entries"]:
        value = observation
        for key in entry["path"]:
            value = value[key]
        assert list(np.shape(value)) == entry["shape"]
        part = vector[entry["offset"] : entry["offset"] + entry["length"]]
        if "sizes" not in entry:
            part[:] = np.ravel(value)
            continue
        begin = 0
        for number, size, start in zip(np.ravel(value), entry["sizes"], entry["start"], strict=True):
            part[begin + number - start] = 1.0
            begin += size
    assert_array_equal(vector.astype(np.float32), Flattening(layout).one(observation))


def test_a_layout_says_where_each_entry_lies() -> None:
    space = spaces.Dict(
        action_mask=spaces.MultiBinary(3),
        gear=spaces.Discrete(5, start=-1),
        mission=Mission(),
        panel=spaces.Tuple((spaces.Box(-1, 1, (2, 2), np.float64), spaces.MultiDiscrete([2, 3]), spaces.Text(4))),
    )
    assert layout_of(space, "mine") == {
        "flat": True,
        "entries": [
            {"path": ["gear"], "kind": "Discrete", "shape": [], "dtype": "int64", "offset": 0, "length": 5}
            | {"sizes": [5], "start": [-1]},
            {"path": ["panel", 0], "kind": "Box", "shape": [2, 2], "dtype": "float64", "offset": 5, "length": 4},
            {"path": ["panel", 1], "kind": "MultiDiscrete", "shape": [2], "dtype": "int64", "offset": 9, "length": 5}
            | {"sizes": [2, 3], "start": [0, 0]},
        ],
        "left_out": [{"path": ["mission"], "kind": "Text"}, {"path": ["panel", 2], "kind": "Text"}],
        "action_mask": ["action_mask"],
    }


@pytest.mark.parametrize(
    "box",
    [
        spaces.Box(-1, 1, (4,)),
        spaces.Box(-1, 1, (3, 84, 84)),  # channels first are known by uint8
        spaces.Box(0, 255, (84, 84, 3), np.uint8),
        spaces.Box(0, 255, (210, 160, 3), np.uint8),
        spaces.Box(0, 255, (3, 84, 3), np.uint8),
        spaces.Box(0, 255, (8, 10, 10), np.uint8),
        spaces.Box(0, 255, (4, 84, 84, 3), np.uint8),
        spaces.Box(0, 1, (10, 10, 4), np.bool_),
        spaces.Box(0, 1, (4, 10, 10), np.bool_),
    ],
)
def test_a_box_stays_as_it_is(box: spaces.Box) -> None:
    assert layout_of(box, "mine") is None


@pytest.mark.parametrize("shape", [(1, 84, 84), (3, 210, 160), (4, 84, 84), (3, 7, 9), (12, 64, 48)])
def test_an_image_with_channels_first_is_turned(shape: tuple[int, ...]) -> None:
    box = spaces.Box(0, 255, shape, np.uint8)
    layout = layout_of(box, "mine")
    assert layout is not None
    assert layout["entries"][0]["axes"] == [1, 2, 0]
    turned, image = space_of(layout, box), box.sample()
    assert (turned.shape, turned.dtype) == ((*shape[1:], shape[0]), np.uint8)
    for channel in range(shape[0]):
        assert_array_equal(Flattening(layout).one(image)[..., channel], image[channel])
    many = Flattening(layout).many(np.stack([image, box.sample()]), 2)
    assert many.shape == (2, *turned.shape)
    assert_array_equal(many[0], Flattening(layout).one(image))


@pytest.mark.parametrize(
    ("entry", "shape", "dtype"),
    [
        (spaces.Box(-1, 1, (3,), np.float64), (3,), np.float64),
        (spaces.Box(0, 255, (3, 40, 50), np.uint8), (40, 50, 3), np.uint8),
        (spaces.Box(0, 1, (10, 10, 4), np.bool_), (10, 10, 4), np.bool_),
    ],
)
def test_the_only_box_keeps_its_shape(entry: spaces.Box, shape: tuple[int, ...], dtype: Any) -> None:
    space: Any = spaces.Dict(mission=Mission(), view=entry, action_mask=spaces.MultiBinary(2))
    layout = layout_of(space, "mine")
    assert layout is not None
    assert not layout["flat"]
    box, view = space_of(layout, space), entry.sample()
    assert (box.shape, box.dtype) == (shape, dtype)
    shown = Flattening(layout).one({"mission": "go", "view": view})
    assert box.contains(shown)
    assert_array_equal(np.sort(shown.ravel()), np.sort(view.ravel()))


def test_a_single_number_becomes_a_vector_of_one() -> None:
    space = spaces.Box(-2, 2, ())
    layout = layout_of(space, "mine")
    assert layout is not None
    assert space_of(layout, space) == spaces.Box(-2, 2, (1,))
    assert_array_equal(Flattening(layout).one(np.float32(1.5)), [1.5])


def test_a_bound_beyond_float32_is_none() -> None:
    space = spaces.Dict(a=spaces.Box(-1e300, 1e300, (1,), np.float64), b=spaces.Discrete(2))
    layout = layout_of(space, "mine")
    assert layout is not None
    assert_array_equal(space_of(layout, space).high, [np.inf, 1.0, 1.0])


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (spaces.Text(5), ["Text", "supported are"]),
        (spaces.Dict(note=spaces.Text(5)), ["nothing to see"]),
        (spaces.Dict(action_mask=spaces.MultiBinary(3)), ["nothing to see"]),
        (spaces.Dict(a=spaces.Graph(spaces.Box(0, 1, (2,)), None)), ["Graph", "at a", "supported are"]),
        (spaces.Tuple((spaces.Sequence(spaces.Discrete(2)),)), ["Sequence", "at 0", "supported are"]),
        (spaces.OneOf([spaces.Discrete(2)]), ["OneOf", "supported are"]),
        (spaces.Box(0, 1, (3, 0)), ["(3, 0)", "size 0"]),
        (spaces.Dict(a=spaces.Box(0, 1, (0,)), b=spaces.Discrete(2)), ["(0,)", "at a", "size 0"]),
        (spaces.Discrete(LARGEST + 1), ["1,000,001 numbers", "at most 1,000,000"]),
    ],
)
def test_what_cannot_become_numbers_is_one_sentence(space: gym.Space[Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refusal:
        layout_of(space, "mine")
    for word in ["mine", *words]:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"box": np.zeros(2), "gear": 5, "dials": np.array([0, 0])}, "at gear .* Discrete"),
        ({"box": np.zeros(2), "gear": -1, "dials": np.array([0, 0])}, "at gear"),
        ({"box": np.zeros(2), "gear": 0, "dials": np.array([0, 3])}, "at dials"),
        ({"box": np.zeros(2), "gear": 0, "dials": np.array([0, -1])}, "at dials"),
        ({"box": np.zeros(2), "gear": 0, "dials": np.array([0])}, "at dials"),
        ({"box": np.zeros(1), "gear": 0, "dials": np.array([0, 0])}, "at box"),
    ],
)
def test_what_is_not_in_its_space_is_refused_and_not_written_elsewhere(shown: dict[str, Any], words: str) -> None:
    space = spaces.Dict(box=spaces.Box(-1, 1, (2,)), dials=spaces.MultiDiscrete([2, 3]), gear=spaces.Discrete(5))
    layout = layout_of(space, "mine")
    assert layout is not None
    with pytest.raises(UserError, match=words):
        Flattening(layout).one(shown)
    batch = {key: np.asarray(value)[None] for key, value in shown.items()}
    with pytest.raises(UserError, match=words):
        Flattening(layout).many(batch, 1)


def test_what_is_left_out_or_loses_its_shape_is_said() -> None:
    space = spaces.Dict(
        mission=Mission(), camera=spaces.Box(0, 255, (3, 40, 40), np.uint8), speed=spaces.Box(0, 1, (1,))
    )
    text, image = notes(layout_of(space, "mine"))
    assert "text at mission is left out" in text
    assert "image at camera becomes 4,800 numbers" in image
    small = spaces.Dict(image=spaces.Box(0, 255, (7, 7, 3), np.uint8), direction=spaces.Discrete(4))
    assert notes(layout_of(small, "mine")) == notes(None) == []
