"""The runtime on files that are put together here, operator by operator, without TensorFlow."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from put_together import KERNEL, linear_file, write_bundle

from rlplatform.runtime import BundleError, FrameStack, ObservationError, Policy, graph


@pytest.fixture
def policy(tmp_path):
    return Policy(write_bundle(tmp_path / "bundle"))


def observations(count=50, width=4):
    return np.random.default_rng(0).normal(0, 1, (count, width)).astype(np.float32)


def test_the_action_is_that_of_the_greatest_value(policy):
    seen = observations()
    expected = seen @ KERNEL.T
    np.testing.assert_allclose([policy.q_values(observation) for observation in seen], expected, rtol=1e-5)
    assert [policy.act(observation) for observation in seen] == list(expected.argmax(axis=1))
    np.testing.assert_array_equal(policy.act_batch(seen), expected.argmax(axis=1))


@pytest.mark.parametrize("with_action", [True, False])
def test_of_equal_values_the_lowest_index_is_taken(tmp_path, with_action):
    kernel = np.array([[-1.0], [1.0], [1.0]], np.float32)
    bundle = write_bundle(tmp_path / "b", shape=(1,), count=3, float=linear_file(kernel, with_action=with_action))
    assert Policy(bundle).act(np.array([2.0], np.float32)) == 1


def test_any_real_numbers_are_taken_for_float32_however_they_lie_in_memory(policy):
    for observation in np.random.default_rng(0).integers(-9, 9, (50, 4)):
        if observation @ KERNEL[0] == 0:
            continue
        expected = int(observation @ KERNEL[0] < 0)
        kinds = [np.int64, np.int8, np.float16, np.float32, np.float64, ">f4", ">f8"]
        for given in (list(observation), tuple(observation), *(observation.astype(kind) for kind in kinds)):
            assert policy.act(given) == expected
        assert policy.act(np.repeat(observation.astype(np.float32), 2)[::2]) == expected
        assert policy.act(observation.astype(np.float32)[::-1].copy()[::-1]) == expected


@pytest.mark.parametrize("width", [4, 65])  # two ways of checking that numbers are finite
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_refused_at_every_place(tmp_path, width, bad):
    kernel = np.ones((2, width), np.float32)
    policy = Policy(write_bundle(tmp_path / "b", shape=(width,), float=linear_file(kernel)))
    for place in range(width):
        observation = np.ones(width, np.float32)
        observation[place] = bad
        for ask in (policy.act, policy.q_values, policy.step, lambda o, policy=policy: policy.act_batch(o[None])):
            with pytest.raises(ObservationError, match=rf"must be finite; got {bad} at \[{place}\]"):
                ask(observation)


@pytest.mark.parametrize("width", [4, 65])
def test_great_numbers_are_finite_and_greater_ones_than_float32_holds_are_not(tmp_path, width):
    policy = Policy(write_bundle(tmp_path / "b", shape=(width,), float=linear_file(np.ones((2, width), np.float32))))
    policy.act(np.full(width, 3e38, np.float32))
    policy.act(np.resize(np.array([3e38, -3e38], np.float32), width))
    with pytest.raises(ObservationError, match=r"must be finite; got inf at \[0\]"):
        policy.act(np.full(width, 1e39))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.zeros(3, np.float32), "must have shape [4]; got [3]"),
        (np.zeros((1, 4), np.float32), "must have shape [4]; got [1, 4]: for a batch, use act_batch"),
        (np.zeros((4, 1)), "must have shape [4]; got [4, 1]"),
        (0.5, "must have shape [4]; got []"),
        (None, "must have shape [4]; got []"),
        (np.zeros(4, complex), "must hold real numbers (float32); got complex128"),
        (np.zeros(4, bool), "must hold real numbers (float32); got bool"),
        (["a", "b", "c", "d"], "must hold real numbers (float32); got <U1"),
        (np.array([1, 2, None, 4]), "must hold real numbers (float32); got object"),
        ([[1], [2, 3]], "must be one array; got sequences of unequal lengths"),
    ],
)
def test_what_is_no_observation_is_refused_by_a_sentence(policy, given, sentence):
    for ask in (policy.act, policy.q_values):
        with pytest.raises(ObservationError) as refusal:
            ask(given)
        assert str(refusal.value) == f"an observation {sentence}"


def test_bytes_must_be_bytes(tmp_path):
    model = linear_file(np.ones((2, 6), np.float32), observation_shape=(2, 3))
    with pytest.raises(BundleError, match=r"takes float32 observations, but policy.json says uint8"):
        Policy(write_bundle(tmp_path / "b", shape=(2, 3), dtype="uint8", float=model))
    int8 = linear_file(np.ones((2, 6), np.float32), int8=True, with_action=False)
    policy = Policy(write_bundle(tmp_path / "c", shape=(6,), dtype="uint8", int8=int8))
    policy.act(np.full(6, 7, np.uint8))
    for given in (np.full(6, 0.5, np.float32), np.full(6, 7), [7] * 6):
        with pytest.raises(ObservationError, match="must be uint8, from 0 to 255 as the environment gives it; got"):
            policy.act(given)


def test_a_batch_has_one_axis_more(policy):
    with pytest.raises(ObservationError, match=r"must have shape \[N, 4\]; got \[4\]"):
        policy.act_batch(np.zeros(4, np.float32))
    assert policy.act_batch(np.zeros((0, 4), np.float32)).shape == (0,)


def test_actions_are_counted_as_the_environment_does(tmp_path):
    seen = observations()
    zero, five = (Policy(write_bundle(tmp_path / str(start), start=start)) for start in (0, 5))
    np.testing.assert_array_equal(five.act_batch(seen), zero.act_batch(seen) + 5)
    assert five.act(seen[0]) == zero.act(seen[0]) + 5


# --- int8 from end to end -------------------------------------------------------------------------------------------


def int8_by_hand(observation, multiplier=1.0, offset=0.0):
    """What the int8 file of `linear_file` gives, in numpy: scales 0.05, 9 / 127 and 0.5, zero points 3 and -5."""
    given = np.clip(np.rint((observation - offset) * multiplier / 0.05) + 3, -128, 127)
    weights = np.round(KERNEL / (9 / 127))
    q = np.clip(np.rint((weights @ (given - 3)) * 0.05 * (9 / 127) / 0.5) - 5, -128, 127)
    return (q + 5) * 0.5


def test_an_int8_file_gets_int8_and_its_values_are_dequantised(tmp_path):
    policy = Policy(write_bundle(tmp_path / "b", int8=linear_file(int8=True, with_action=False)))
    for observation in observations():
        expected = int8_by_hand(observation)
        np.testing.assert_allclose(policy.q_values(observation), expected, atol=0.51)  # one step
        if abs(expected[0] - expected[1]) > 1.5:
            assert policy.act(observation) == expected.argmax()


def test_an_int8_file_gets_every_feature_on_its_own_scale(tmp_path):
    offset, multiplier = np.array([0.5, -1.0, 0.0, 2.0]), np.array([2.0, 0.25, 10.0, 1.0])
    scaling = {"input_scaling": {"offset": offset.tolist(), "multiplier": multiplier.tolist()}}
    policy = Policy(write_bundle(tmp_path / "b", int8=(linear_file(int8=True, with_action=False), scaling)))
    for observation in observations():
        np.testing.assert_allclose(
            policy.q_values(observation), int8_by_hand(observation, multiplier, offset), atol=0.51
        )


@pytest.mark.parametrize("kind", ["int8", "int16"])
def test_an_observation_enters_as_whole_numbers_of_the_files_own_kind(kind):
    dtype = np.dtype(kind)
    target = graph.Tensor(0, (1, 3), dtype, scale=0.5, zero_point=2)
    quantised = graph._quantiser(target, None)(np.array([1.0, -4.0, 1e9], np.float32))
    assert quantised.dtype == dtype
    np.testing.assert_array_equal(quantised, [[4, -6, np.iinfo(dtype).max]])


@pytest.mark.parametrize("kind", ["int8", "int16"])
@pytest.mark.parametrize(("scale", "zero_point"), [(1.0, -128), (1.0, -100), (0.4, -128), (1 / 255, 3), (2.5, 7)])
def test_images_are_quantised_as_numbers_are(scale, zero_point, kind):
    """Bytes are looked up, or have a bit turned; what comes out is what arithmetic gives."""
    target = graph.Tensor(0, (1, 16, 16), np.dtype(kind), scale, zero_point)
    quantise, image = graph._quantiser(target, None), np.arange(256, dtype=np.uint8).reshape(16, 16)
    limits = np.iinfo(kind)
    expected = np.clip(np.rint(image.astype(np.float64) / scale + zero_point), limits.min, limits.max)
    for given in (image, image.T, image[::-1]):
        quantised = quantise(given)
        assert quantised.dtype == kind
        assert np.array_equal(quantised, quantise(given.astype(np.float32)))
        joined = graph._quantiser(graph.Tensor(0, (1, 16, 4, 4), np.dtype(kind), scale, zero_point), None)
        for each in (given, given.astype(np.float32)):
            assert np.array_equal(joined(each), quantise(given).reshape(1, 16, 4, 4))
    assert np.abs(quantise(image)[0] - expected).max() <= (0 if scale in (1.0, 2.5) else 1)


def test_an_image_enters_a_file_of_whole_numbers_with_pixels_of_a_row_together(tmp_path):
    kernel = np.arange(-8, 8, dtype=np.float32).reshape(2, 8)
    seen = np.random.default_rng(0).integers(0, 8, (50, 2, 4, 1), np.uint8)

    def opened(name, taken, **options):
        model = linear_file(kernel, observation_shape=taken, **options)
        kind = "int8" if options.get("int8") else "float"
        return Policy(write_bundle(tmp_path / name, shape=(2, 4, 1), dtype="uint8", **{kind: model}))

    parted, joined = (
        opened(name, taken, int8=True, with_action=False) for name, taken in (("a", (2, 4, 1)), ("b", (2, 2, 2)))
    )
    for observation in seen:
        np.testing.assert_array_equal(joined.q_values(observation), parted.q_values(observation))
    np.testing.assert_array_equal(joined.act_batch(seen), parted.act_batch(seen))
    with pytest.raises(BundleError, match=r"takes observations of shape \[1, 4, 2, 1\], but policy.json says"):
        opened("c", (4, 2, 1), int8=True, with_action=False)
    with pytest.raises(BundleError, match=r"takes observations of shape \[1, 2, 2, 2\], but policy.json says"):
        opened("d", (2, 2, 2))


def test_numbers_beyond_the_int8_range_saturate_instead_of_wrapping(tmp_path):
    policy = Policy(write_bundle(tmp_path / "b", int8=linear_file(int8=True, with_action=False)))
    assert policy.act([1e30, 0, 0, 0]) == policy.act([100.0, 0, 0, 0]) == 0
    assert policy.act([-1e30, 0, 0, 0]) == 1


def test_the_variant_is_chosen_by_name_or_by_the_bundle(tmp_path):
    bundle = write_bundle(tmp_path / "b", int8=linear_file(int8=True, with_action=False), float=linear_file())
    assert [Policy(bundle, variant).variant for variant in ("auto", "float", "int8")] == ["int8", "float", "int8"]
    only = write_bundle(tmp_path / "c")
    with pytest.raises(BundleError, match="has no variant 'int8'; it has float"):
        Policy(only, "int8")


def test_where_the_environment_shows_bool_bool_is_taken_as_0_and_1(tmp_path):
    policy = Policy(write_bundle(tmp_path / "b", binary=True))
    for given in np.eye(4, dtype=bool):
        assert policy.act(given) == policy.act(given.astype(np.float32)) == policy.act(given.tolist())
        np.testing.assert_array_equal(policy.q_values(given), policy.q_values(given.astype(np.float32)))


# --- action masks ---------------------------------------------------------------------------------------------------

MANY = np.random.default_rng(1).normal(0, 1, (5, 4)).astype(np.float32)  # [A, O], five actions
MASKED_FILES = {
    "float": linear_file(MANY, mask="bool"),
    "without action": linear_file(MANY, with_action=False),
    "int8": linear_file(np.round(MANY, 1), int8=True, with_action=False),
}


def masked_policy(folder, kind="float", **options):
    return Policy(write_bundle(folder, count=5, mask=True, float=MASKED_FILES[kind], **options))


def random_masks(count, num_actions=5, seed=2):
    """`[count, A]`, each with at least one action allowed; every tenth allows all."""
    rng = np.random.default_rng(seed)
    masks = rng.random((count, num_actions)) < rng.random((count, 1))
    masks[np.arange(count), rng.integers(0, num_actions, count)] = True
    masks[::10] = True
    return masks


@pytest.mark.parametrize("kind", MASKED_FILES)
def test_a_forbidden_action_is_never_taken_and_the_best_allowed_one_always(tmp_path, kind):
    policy = masked_policy(tmp_path / "b", kind)
    count = 100_000
    seen, masks = observations(count), random_masks(count)
    actions = policy.act_batch(seen, masks)
    assert masks[np.arange(count), actions].all()
    q = np.stack([policy.q_values(observation) for observation in seen]) if kind == "int8" else seen @ MANY.T
    np.testing.assert_array_equal(actions, np.where(masks, q, -np.inf).argmax(axis=1))


@pytest.mark.parametrize("kind", MASKED_FILES)
def test_values_are_those_of_all_actions_whatever_is_allowed(tmp_path, kind):
    policy = masked_policy(tmp_path / "b", kind)
    for observation in observations(20):
        before = policy.q_values(observation)
        policy.act(observation, [0, 0, 1, 0, 0])
        np.testing.assert_array_equal(policy.q_values(observation), before)


@pytest.mark.parametrize("kind", MASKED_FILES)
def test_every_way_of_writing_a_mask_means_the_same(tmp_path, kind):
    policy = masked_policy(tmp_path / "b", kind)
    for observation, mask in zip(observations(30), random_masks(30), strict=True):
        expected = policy.act(observation, mask)
        for given in (
            *(mask.astype(dtype) for dtype in (np.int8, np.uint8, np.int32, np.int64)),
            mask.tolist(),
            tuple(mask.astype(int).tolist()),
            np.repeat(mask, 2)[::2],
            mask[::-1].astype(np.int8)[::-1],
        ):
            assert policy.act(observation, given) == expected


@pytest.mark.parametrize("kind", MASKED_FILES)
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (np.ones(4, bool), "must have shape [5]; got [4]"),
        (np.ones((1, 5), np.int8), "must have shape [5]; got [1, 5]: for a batch, use act_batch"),
        (True, "must have shape [5]; got []"),
        (np.ones(5, np.float32), "must hold booleans, or 0 and 1 as integers; got float32"),
        (["a"] * 5, "must hold booleans, or 0 and 1 as integers; got <U1"),
        (np.array([0, 1, 2, 0, 0], np.int8), "must hold booleans, or 0 and 1 as integers; got 2 at [2]"),
        ([0, 1, 0, 0, -1], "must hold booleans, or 0 and 1 as integers; got -1 at [4]"),
        (np.zeros(5, bool), "must allow at least one action; this one forbids all 5"),
        (np.zeros(5, np.int8), "must allow at least one action; this one forbids all 5"),
        ([0] * 5, "must allow at least one action; this one forbids all 5"),
        ([[1], [2, 3]], "must be one array; got sequences of unequal lengths"),
    ],
)
def test_what_is_no_mask_is_refused_by_a_sentence(tmp_path, kind, given, sentence):
    policy = masked_policy(tmp_path / "b", kind)
    for ask in (policy.act, policy.step):
        with pytest.raises(ObservationError) as refusal:
            ask(np.zeros(4, np.float32), given)
        assert str(refusal.value) == f"an action mask {sentence}"


def test_where_the_environment_offers_masks_a_decision_needs_one(tmp_path):
    policy = masked_policy(tmp_path / "b")
    assert policy.needs_mask
    for ask in (policy.act, policy.step, lambda observation: policy.act_batch(observation[None])):
        with pytest.raises(ObservationError, match=r"offers action masks, and a decision needs one of shape \[5\]"):
            ask(np.zeros(4, np.float32))
    with pytest.raises(ObservationError, match=r"must have shape \[4\]; got \[3\]"):
        policy.act(np.zeros(3, np.float32))
    with pytest.raises(ObservationError, match=r"masks of a batch must have shape \[3, 5\]; got \[2, 5\]"):
        policy.act_batch(np.zeros((3, 4), np.float32), np.ones((2, 5), bool))


def test_a_policy_that_needs_no_mask_takes_one_all_the_same(tmp_path):
    policy = Policy(write_bundle(tmp_path / "b", count=5, float=linear_file(MANY)))
    assert not policy.needs_mask
    seen, masks = observations(200), random_masks(200)
    np.testing.assert_array_equal(policy.act_batch(seen, masks), np.where(masks, seen @ MANY.T, -np.inf).argmax(axis=1))
    np.testing.assert_array_equal(policy.act_batch(seen), (seen @ MANY.T).argmax(axis=1))


def test_masks_go_with_frames_and_with_actions_that_begin_elsewhere(tmp_path):
    bundle = write_bundle(
        tmp_path / "b",
        frame_shape=(2,),
        frame_stack=2,
        start=7,
        count=5,
        mask=True,
        float=linear_file(MANY, mask="bool"),
    )
    policy, before = Policy(bundle), None
    for frame, mask in zip(observations(30, width=2), random_masks(30), strict=True):
        stacked = np.concatenate([frame if before is None else before, frame])
        assert policy.step(frame, mask) == 7 + np.where(mask, MANY @ stacked, -np.inf).argmax()
        before = frame


@pytest.mark.parametrize(
    ("content", "mask", "sentence"),
    [
        (linear_file(MANY, mask="bool"), False, r"takes an action mask, but policy.json says that there is none"),
        (linear_file(MANY, mask="float32"), True, r"takes action masks of shape \[1, 5\] and dtype float32, but"),
    ],
)
def test_a_file_that_does_not_fit_what_the_manifest_says_of_masks_is_refused(tmp_path, content, mask, sentence):
    with pytest.raises(BundleError, match=sentence):
        Policy(write_bundle(tmp_path / "b", count=5, mask=mask, float=content))


# --- observations of the environment's own form ---------------------------------------------------------------------

BOX = {"path": ["place"], "kind": "Box", "shape": [2], "dtype": "float64", "offset": 0, "length": 2}
CARD = {"path": ["card"], "kind": "Discrete", "shape": [], "dtype": "int64", "offset": 2, "length": 3}
LAYOUT = {
    "flat": True,
    "entries": [BOX, {**CARD, "sizes": [3], "start": [1]}],
    "left_out": [],
    "action_mask": ["action_mask"],
}
FIVE = np.random.default_rng(2).normal(0, 1, (5, 5)).astype(np.float32)  # [A, O]


def structured_policy(folder, **options):
    options = {
        "shape": (5,),
        "count": 5,
        "mask": True,
        "layout": LAYOUT,
        "float": linear_file(FIVE, mask="bool"),
    } | options
    return Policy(write_bundle(folder, **options))


def test_a_dict_is_taken_like_the_vector_that_it_means(tmp_path):
    policy = structured_policy(tmp_path / "b")
    for place, card, mask in zip(observations(30, width=2), [1, 2, 3] * 10, random_masks(30), strict=True):
        vector = np.concatenate([place, np.eye(3, dtype=np.float32)[card - 1]])
        expected = np.where(mask, FIVE @ vector, -np.inf).argmax()
        given = {"place": place.astype(np.float64), "card": card, "action_mask": mask.astype(np.int8)}
        assert [policy.act(given), policy.act(given, mask), policy.step(given)] == [expected] * 3
        assert policy.act(vector, mask) == expected
        np.testing.assert_array_equal(policy.q_values(given), policy.q_values(vector))
        other = np.roll(mask, 1)  # What is given beside an observation goes over what stands in it.
        assert policy.act(given, other) == np.where(other, FIVE @ vector, -np.inf).argmax()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"card": 4}, "an observation's entry 'card' must lie between 1 and 3; got 4"),
        ({"card": 0}, "an observation's entry 'card' must lie between 1 and 3; got 0"),
        ({"card": 1.5}, "an observation's entry 'card' must hold whole numbers; got float64"),
        ({"place": np.zeros(3)}, "an observation's entry 'place' must have shape [2]; got [3]"),
        ({"place": ["a", "b"]}, "an observation's entry 'place' must hold numbers; got <U1"),
        ({"place": [0.0, np.nan]}, "an observation must be finite; got nan at [1]"),
        ({"place": [0.0, 1e39]}, "an observation must be finite; got inf at [1]"),
        ({"place": None}, "an observation's entry 'place' must have shape [2]; got []"),
    ],
)
def test_an_entry_that_is_not_in_its_space_is_refused_by_its_name(tmp_path, change, sentence):
    policy = structured_policy(tmp_path / "b")
    given = {"place": [0.1, 0.2], "card": 1, "action_mask": [1, 1, 0, 0, 0]} | change
    for ask in (policy.act, policy.q_values):
        with pytest.raises(ObservationError) as refusal:
            ask(given)
        assert str(refusal.value) == sentence


def test_an_entry_that_is_missing_is_named(tmp_path):
    policy = structured_policy(tmp_path / "b")
    for missing in ("place", "card", "action_mask"):
        given = {"place": [0.1, 0.2], "card": 1, "action_mask": [1, 1, 0, 0, 0]}
        del given[missing]
        with pytest.raises(ObservationError, match=f"must have an entry '{missing}'"):
            policy.act(given)


def test_frames_of_the_environments_own_form_are_stacked(tmp_path):
    kernel = np.random.default_rng(3).normal(0, 1, (2, 10)).astype(np.float32)
    layout = LAYOUT | {"action_mask": None}
    policy = structured_policy(
        tmp_path / "b", shape=(10,), frame_shape=(5,), frame_stack=2, count=2, mask=None, layout=layout,
        float=linear_file(kernel),
    )  # fmt: skip
    first, second = ({"place": [x, -x], "card": card} for x, card in ((0.5, 3), (0.7, 1)))
    vectors = np.array([[0.5, -0.5, 0, 0, 1], [0.7, -0.7, 1, 0, 0]])
    assert policy.step(first) == (kernel @ np.concatenate([vectors[0], vectors[0]])).argmax()
    assert policy.step(second) == (kernel @ vectors.ravel()).argmax()
    with pytest.raises(ObservationError, match="that is one frame, and `act` takes 2 stacked"):
        policy.act(first)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_step_stacks_the_newest_frames_and_reset_begins_an_episode(tmp_path):
    kernel = np.arange(12, dtype=np.float32).reshape(2, 6) - 5.0
    bundle = write_bundle(tmp_path / "b", shape=(6,), frame_shape=(2,), frame_stack=3, float=linear_file(kernel))
    policy = Policy(bundle)
    frames = observations(5, width=2)
    for _ in range(2):
        policy.reset()
        for index, frame in enumerate(frames):
            newest = [frames[max(0, index - 2)], frames[max(0, index - 1)], frame]
            assert policy.step(frame) == policy.act(np.concatenate(newest))
    with pytest.raises(ObservationError, match=r"got \[2\]: that is one frame, and `act` takes 3 stacked"):
        policy.act(frames[0])
    with pytest.raises(ObservationError, match=r"a frame must have shape \[2\]; got \[6\]"):
        policy.step(np.zeros(6))


@pytest.mark.parametrize(
    ("frame_shape", "depth", "expected"),
    [((3,), 2, (6,)), ((2, 3), 4, (2, 3, 4)), ((2, 3), 1, (2, 3, 1)), ((2, 3, 3), 2, (2, 3, 6)), ((3,), 1, (3,))],
)
def test_frames_are_joined_along_the_last_axis(frame_shape, depth, expected):
    stack = FrameStack(frame_shape, depth)
    assert stack.push(np.zeros(frame_shape, np.uint8)).shape == expected
    stacked = stack.push(np.ones(frame_shape, np.uint8))
    assert stacked.dtype == np.uint8
    newest = expected[-1] // depth
    assert (stacked[..., -newest:] == 1).all()
    assert (stacked[..., :-newest] == 0).all()


def test_a_frame_may_change_after_it_was_pushed():
    stack, frame = FrameStack((2,), 2), np.zeros(2)
    stack.push(frame)
    frame[:] = 9.0
    np.testing.assert_array_equal(stack.push(frame), [0, 0, 9, 9])


# --- bundles that are not whole -------------------------------------------------------------------------------------


def test_a_byte_changed_anywhere_in_a_file_that_is_used_is_refused(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    for name in ("policy.json", "float.tflite"):
        whole = (bundle / name).read_bytes()
        for place in range(0, len(whole), 7):
            changed = bytearray(whole)
            changed[place] ^= 0x08
            (bundle / name).write_bytes(changed)
            with pytest.raises(BundleError, match=name):
                Policy(bundle)
        (bundle / name).write_bytes(whole[:-1])
        with pytest.raises(BundleError, match=name):
            Policy(bundle)
        (bundle / name).write_bytes(whole)
    Policy(bundle)


def test_a_file_that_is_not_used_may_be_missing(tmp_path):
    bundle = write_bundle(tmp_path / "b", float=linear_file(), int8=linear_file(int8=True, with_action=False))
    (bundle / "int8.tflite").unlink()
    Policy(bundle, "float")
    with pytest.raises(BundleError, match=r"int8\.tflite cannot be read: No such file or directory"):
        Policy(bundle, "int8")


def test_a_folder_that_is_no_bundle_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BundleError, match=r"is not a policy bundle: it has no policy\.json"):
            Policy(path)
    (tmp_path / "policy.json").write_text("[]")
    with pytest.raises(BundleError, match="does not describe a policy bundle"):
        Policy(tmp_path)
    (tmp_path / "policy.json").write_text('{"format": "rlplatform-bundle", "version": 2}')
    with pytest.raises(BundleError, match="is of bundle version 2, and this runtime reads version 1"):
        Policy(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"not a model", "is not a file that LiteRT runs"),
        (linear_file(signature="serving_default"), "is not a file that LiteRT runs: .*act"),
        (
            linear_file(np.ones((2, 5), np.float32)),
            r"takes observations of shape \[1, 5\], but policy.json says \[1, 4\]",
        ),
        (linear_file(np.ones((3, 4), np.float32)), r"gives values of shape \[1, 3\], but policy.json says \[1, 2\]"),
    ],
)
def test_a_file_that_does_not_fit_the_manifest_is_refused(tmp_path, content, sentence):
    with pytest.raises(BundleError, match=sentence):
        Policy(write_bundle(tmp_path / "b", float=content))


# --- what it needs --------------------------------------------------------------------------------------------------


def test_a_decision_imports_numpy_and_litert_and_nothing_else(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    root = pathlib.Path(__file__).parents[2]
    program = f"""
import sys
sys.path.insert(0, {str(root)!r})
import rlplatform.runtime
assert "ai_edge_litert" not in sys.modules, "importing the runtime loads the interpreter"
assert rlplatform.runtime.Policy({str(bundle)!r}).act([0.1, 0, 0, 0]) == 0
heavy = {{"tensorflow", "tf_keras", "keras", "gymnasium", "tomli_w"}} & set(sys.modules)
ours = {{name for name in sys.modules if name.startswith("rlplatform.") and "runtime" not in name}}
assert not heavy, heavy
assert ours <= {{"rlplatform.errors"}}, ours
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)


def test_the_folder_works_when_it_is_copied_out_and_renamed(tmp_path):
    bundle = write_bundle(tmp_path / "b")
    source = pathlib.Path(__file__).parents[2] / "rlplatform" / "runtime"
    (tmp_path / "player").mkdir()
    for file in source.glob("*.py"):
        (tmp_path / "player" / file.name).write_bytes(file.read_bytes())
    program = f"import player; assert player.Policy({str(bundle)!r}).act([0.1, 0, 0, 0]) == 0"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
