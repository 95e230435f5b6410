"""The runtime's reading of a layout against the environments' own, on random spaces."""

import json
import types

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplatform.envs.flattening import Flattening
from rlplatform.envs.joint import action_layout_of, table_of
from rlplatform.envs.layout import layout_of, space_of
from rlplatform.runtime import ObservationError, Policy
from rlplatform.runtime.layout import Layout

LEAVES = st.one_of(
    st.builds(lambda shape: spaces.Box(-2, 2, shape), st.sampled_from([(), (3,), (2, 2)])),
    st.builds(lambda shape: spaces.Box(0, 255, shape, np.uint8), st.sampled_from([(2,), (3, 8, 8), (8, 8, 3)])),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-2, 3)),
    st.builds(lambda sizes: spaces.MultiDiscrete(sizes), st.lists(st.integers(2, 4), min_size=1, max_size=3)),
    st.builds(spaces.MultiBinary, st.one_of(st.integers(1, 4), st.just([2, 3]))),
)
SPACES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("abc"), parts, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=5,
)


@settings(max_examples=200)
@given(space=SPACES, seed=st.integers(0, 1_000))
def test_the_array_is_the_one_that_the_network_was_trained_on(space, seed):
    described = layout_of(space, "env")
    if described is None:  # An array already.
        return
    layout = Layout(json.loads(json.dumps(described)), space_of(described, space).shape)
    space.seed(seed)
    for _ in range(3):
        observation = space.sample()
        expected = Flattening(described).one(observation)
        if layout.fits(observation):
            found = layout.array(observation)
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype
            assert not layout.fits(found)
        else:  # Only what is an array of that shape already.
            np.testing.assert_array_equal(observation, expected)


def test_a_mask_in_the_observation_is_found():
    space = spaces.Dict({"seen": spaces.Box(-1, 1, (2,)), "action_mask": spaces.MultiBinary(3)})
    layout = Layout(layout_of(space, "env"), (2,))
    mask = np.array([1, 0, 1], np.int8)
    observation = {"seen": np.array([0.5, -0.5], np.float32), "action_mask": mask}
    assert layout.mask(observation) is mask
    assert layout.mask(np.zeros(2)) is None
    np.testing.assert_array_equal(layout.array(observation), observation["seen"])


@pytest.mark.parametrize("wrong", [{}, (), {"x": 1}, None, [[1], [2, 3]], "text"])
def test_what_has_neither_form_does_not_fit_or_is_refused(wrong):
    layout = Layout(layout_of(spaces.Dict({"a": spaces.Discrete(3)}), "env"), (3,))
    if layout.fits(wrong):
        with pytest.raises(ObservationError, match="must have an entry 'a'"):
            layout.array(wrong)


@pytest.mark.parametrize(
    "space",
    [spaces.MultiDiscrete([3, 2, 4], start=[0, 5, -1]), spaces.MultiBinary([2, 2]), spaces.MultiDiscrete([[2, 3]])],
)
def test_an_index_becomes_the_components_that_the_environment_takes(space):
    layout = action_layout_of(space, "env")
    bundle = types.SimpleNamespace(manifest={"action": {"layout": json.loads(json.dumps(layout))}})
    for index, expected in enumerate(table_of(layout)):
        components = Policy.components(bundle, index)
        np.testing.assert_array_equal(components, expected)
        assert components.dtype == space.dtype
        assert space.contains(components)


def test_an_action_of_one_component_is_the_action():
    for action in ({}, {"layout": None}):
        assert Policy.components(types.SimpleNamespace(manifest={"action": action}), 3) == 3
