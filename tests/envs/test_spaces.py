"""What an environment shows and takes."""

import dataclasses
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlplatform import envs
from rlplatform.errors import UserError

INF = np.inf


class Shell(gym.Env[Any, Any]):
    """Spaces and nothing else."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action


@pytest.mark.parametrize(
    ("box", "dtype"),
    [
        (spaces.Box(-1, 1, (4,), np.float32), "float32"),
        (spaces.Box(-1, 1, (4,), np.float64), "float32"),
        (spaces.Box(-5, 5, (4,), np.int64), "float32"),
        (spaces.Box(0, 255, (4,), np.int16), "float32"),
        (spaces.Box(0, 255, (4,), np.uint8), "uint8"),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "uint8"),
    ],
)
def test_numbers_become_float32_and_uint8_stays(box: spaces.Box, dtype: str) -> None:
    assert envs.spec_of(Shell(box, spaces.Discrete(3))) == envs.Spec(box.shape, dtype, 3, 0)


def test_actions_may_start_anywhere() -> None:
    spec = envs.spec_of(Shell(spaces.Box(-1, 1, (2,)), spaces.Discrete(4, start=-1)))
    assert (spec.num_actions, spec.action_start) == (4, -1)
    assert all(type(number) is int for number in (spec.num_actions, spec.action_start))


def test_a_vector_environment_has_the_spec_of_its_single_one() -> None:
    single, vector = gym.make("Acrobot-v1"), gym.make_vec("Acrobot-v1", 3, vectorization_mode="sync")
    assert envs.spec_of(vector) == envs.spec_of(single) == envs.Spec((6,), "float32", 3)


@pytest.mark.parametrize(
    ("observation", "action", "words"),
    [
        (spaces.Text(5), spaces.Discrete(2), ["Text", "supported are"]),
        (spaces.Graph(spaces.Box(0, 1, (2,)), None), spaces.Discrete(2), ["Graph", "supported are"]),
        (spaces.Box(0, 1, (3, 0)), spaces.Discrete(2), ["shape (3, 0)", "size 0"]),
        (spaces.Box(0, 1, (2,)), spaces.Box(-1, 1, (1,)), ["actions of Box(-1.0, 1.0, (1,)", "supported are"]),
        (spaces.Discrete(16), spaces.Discrete(2), ["rlplatform.envs.make"]),
        (spaces.Dict(a=spaces.Box(0, 1, (2,))), spaces.Discrete(2), ["rlplatform.envs.make"]),
        (spaces.Box(0, 255, (3, 40, 40), np.uint8), spaces.Discrete(2), ["rlplatform.envs.make"]),
        (spaces.Box(0, 1, (2,)), spaces.MultiDiscrete([2, 2]), ["rlplatform.envs.make"]),
    ],
)
def test_other_spaces_and_those_that_are_not_adapted_are_refused(
    observation: gym.Space[Any], action: gym.Space[Any], words: list[str]
) -> None:
    with pytest.raises(UserError) as refusal:
        envs.spec_of(Shell(observation, action))
    for word in ["Shell", *words]:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_spec_holds_what_was_adapted_as_json_does() -> None:
    space = spaces.Tuple((spaces.Discrete(3, start=1), spaces.Box(-1, 1, (2,))))
    env = envs.Adapter(Shell(space, spaces.MultiDiscrete([2, 3], start=[4, 0])))
    spec = envs.spec_of(env)
    assert spec == envs.Spec(
        (5,),
        "float32",
        6,
        layout={
            "flat": True,
            "entries": [
                {"path": [0], "kind": "Discrete", "shape": [], "dtype": "int64", "offset": 0, "length": 3}
                | {"sizes": [3], "start": [1]},
                {"path": [1], "kind": "Box", "shape": [2], "dtype": "float32", "offset": 3, "length": 2},
            ],
            "left_out": [],
            "action_mask": None,
        },
        action_layout={"kind": "MultiDiscrete", "sizes": [2, 3], "start": [4, 0], "shape": [2], "dtype": "int64"},
    )
    tree = json.loads(json.dumps(dataclasses.asdict(spec)))
    assert envs.Spec(**tree | {"observation_shape": tuple(tree["observation_shape"])}) == spec


def test_a_box_of_objects_is_refused() -> None:
    box: Any = spaces.Box(0, 1, (2,))
    box.dtype = np.dtype(object)
    with pytest.raises(UserError, match="dtype object"):
        envs.spec_of(Shell(box, spaces.Discrete(2)))


@pytest.mark.parametrize(
    ("shape", "stacked"),
    [((5,), (15,)), ((8, 9), (8, 9, 3)), ((8, 9, 2), (8, 9, 6)), ((2, 3, 4, 5), (2, 3, 4, 15))],
)
def test_a_stack_joins_frames_along_the_last_axis(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    assert envs.Spec(shape, "float32", 2).stacked_shape(3) == stacked
