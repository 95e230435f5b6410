"""A policy that remembers: its state is kept within an episode, forgotten between two, and never guessed."""

import numpy as np
import pytest
from put_together import KERNEL, linear_file, write_bundle

from rlplatform.runtime import BundleError, ObservationError, Policy

WIDTH = 4


def bundle(tmp_path, **options):
    """Values KERNEL @ the sum of all observations since the last reset."""
    file = linear_file(remembers=True, **{name: options.pop(name) for name in ("mask",) if name in options})
    return write_bundle(tmp_path / "bundle", state=WIDTH, mask=options.pop("needs_mask", None), float=file, **options)


@pytest.fixture
def policy(tmp_path):
    return Policy(bundle(tmp_path))


def frames(count=30):
    return np.random.default_rng(0).normal(0, 1, (count, WIDTH)).astype(np.float32)


def test_each_step_decides_by_all_that_was_seen_since_the_last_reset(policy):
    seen = frames()
    for episode in (seen[:10], seen[10:11], seen[11:]):
        policy.reset()
        actions = [policy.step(frame) for frame in episode]
        sums = np.cumsum(episode, axis=0)
        assert actions == list((sums @ KERNEL.T).argmax(axis=1))
        np.testing.assert_allclose(policy.state, sums[-1], rtol=1e-5)
    assert actions != list((seen[11:] @ KERNEL.T).argmax(axis=1))  # the last frame alone would not do


def test_the_first_step_of_a_new_policy_begins_an_episode(policy):
    first = frames(1)[0]
    np.testing.assert_array_equal(policy.state, np.zeros(WIDTH))
    assert policy.step(first) == (KERNEL @ first).argmax()


def test_a_caller_who_keeps_the_states_gets_the_same_decisions_side_by_side(policy, tmp_path):
    one, two = frames()[:15], frames()[15:]
    expected = []
    for episode in (one, two):
        policy.reset()
        expected.append([policy.step(frame) for frame in episode])
    policy.reset()
    states, found = [policy.initial_state] * 2, ([], [])
    for pair in zip(one, two, strict=True):
        for place, frame in enumerate(pair):
            decision = policy.decide(frame, states[place])
            states[place] = decision.state
            found[place].append(decision.action)
            np.testing.assert_allclose(decision.q, KERNEL @ decision.state, rtol=1e-4, atol=1e-5)
    assert list(found) == expected
    np.testing.assert_array_equal(policy.state, np.zeros(WIDTH))  # `decide` leaves what `step` remembers alone


def test_an_observation_alone_is_not_answered(policy):
    sentence = r"remembers what it has seen of an episode.*: use reset\(\) and step\(frame\), or decide\("
    for ask in (policy.act, policy.q_values, lambda given: policy.act_batch(given[None])):
        with pytest.raises(ObservationError, match=sentence):
            ask(frames(1)[0])
    with pytest.raises(ObservationError, match=sentence):
        policy.act_batch(frames(2), np.ones((2, 2), np.bool_))


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (np.zeros(3, np.float32), r"must have shape \[4\]; got \[3\]: an episode begins with initial_state"),
        (np.zeros((1, 4), np.float32), r"must have shape \[4\]; got \[1, 4\]"),
        (None, r"must have shape \[4\]; got \[\]"),
        ([[1.0], [1.0, 2.0]], "must be one array; got sequences of unequal lengths"),
        (np.zeros(4, np.complex64), "must hold real numbers .*; got complex64"),
        (np.array(["0"] * 4), "must hold real numbers"),
        ([0.0, np.nan, 0.0, 0.0], r"must be finite; got nan at \[1\]"),
        ([0.0, 0.0, 0.0, 1e300], r"must be finite; got inf at \[3\]"),
    ],
)
def test_what_is_no_state_is_refused_by_a_sentence(policy, state, sentence):
    with pytest.raises(ObservationError, match=f"a state {sentence}"):
        policy.decide(frames(1)[0], state)


def test_a_frame_that_is_refused_is_not_remembered(policy):
    seen = frames(3)
    policy.reset()
    policy.step(seen[0])
    before = policy.state
    for wrong in (np.full(WIDTH, np.nan, np.float32), np.zeros(3, np.float32)):
        with pytest.raises(ObservationError):
            policy.step(wrong)
    np.testing.assert_array_equal(policy.state, before)
    policy.state[:] = 100.0  # a copy
    policy.step(seen[1])
    np.testing.assert_allclose(policy.state, seen[0] + seen[1], rtol=1e-5)


def test_nobody_can_change_what_an_episode_begins_with(policy):
    with pytest.raises(ValueError, match="read-only"):
        policy.initial_state[0] = 1.0


def test_stacked_frames_are_stacked_and_remembered(tmp_path):
    policy = Policy(bundle(tmp_path, frame_shape=(2,), frame_stack=2))
    shown = frames(6)[:, :2]
    policy.reset()
    actions = [policy.step(frame) for frame in shown]
    stacked = np.concatenate([np.concatenate([shown[:1], shown[:-1]]), shown], axis=1)
    assert actions == list((np.cumsum(stacked, axis=0) @ KERNEL.T).argmax(axis=1))


@pytest.mark.parametrize("mask", ["bool", None], ids=["by the file", "by its values"])
def test_a_mask_is_heeded_and_does_not_change_what_is_remembered(tmp_path, mask):
    policy = Policy(bundle(tmp_path, mask=mask, needs_mask=True))
    seen = frames()
    policy.reset()
    for index, frame in enumerate(seen):
        only = index % 2
        assert policy.step(frame, np.arange(2) == only) == only
    np.testing.assert_allclose(policy.state, seen.sum(axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ObservationError, match=r"offers action masks.* of shape \[2\]: step\(frame, action_mask\)"):
        policy.step(seen[0])


def test_a_policy_without_a_memory_takes_no_state(tmp_path):
    policy = Policy(write_bundle(tmp_path / "bundle"))
    assert not policy.remembers
    assert policy.initial_state.shape == policy.state.shape == (0,)
    with pytest.raises(ObservationError, match=r"remembers nothing, so it takes no state: use act\(observation\)"):
        policy.decide(frames(1)[0], policy.initial_state)


@pytest.mark.parametrize(
    ("state", "file", "sentence"),
    [
        (None, linear_file(remembers=True), "takes a state, but policy.json says that it remembers nothing"),
        (4, linear_file(), "takes no state, but policy.json says that it remembers 4 numbers"),
        (5, linear_file(remembers=True), r"has states of shape \[1, 4\] and dtype float32, .* says \[1, 5\]"),
    ],
)
def test_a_file_that_is_not_as_the_manifest_says_is_refused(tmp_path, state, file, sentence):
    with pytest.raises(BundleError, match=sentence):
        Policy(write_bundle(tmp_path / "bundle", state=state, float=file))
