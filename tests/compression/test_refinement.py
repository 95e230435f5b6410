"""Edits of a file, on a small network that is converted once for either way of quantising."""

import numpy as np
import pytest
import tf_keras as keras

from rlplatform.compression import agreement, conversion, inspection, refinement
from rlplatform.compression.converter import CONVERTER
from rlplatform.runtime import open_graph

pytestmark = pytest.mark.slow  # every one of them runs TensorFlow's converter

SEEN = np.random.default_rng(0).normal(0, 1, (300, 4)).astype(np.float32) * np.array([1.0, 1.0, 0.01, 1.0], np.float32)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """A network that lives by its third feature, a hundredth of the others, and what the converter makes of it."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(300, activation="relu"),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(3),
        ]
    )
    weights = model.get_weights()
    weights[0][2] *= 100
    weights[4] -= weights[4].mean(axis=1, keepdims=True)
    model.set_weights(weights)
    folder = tmp_path_factory.mktemp("converted")
    conversion.save(model, "float32", folder / "model")
    np.save(folder / "calibration.npy", SEEN)
    static = {"input": "float32", "output_type": "float32", "per_channel": False}
    jobs = [{"mode": mode, "saved_model": "model", "output": f"{mode}.tflite", **static} for mode in MODES]
    (folder / "jobs.json").write_text(conversion.json.dumps(jobs))
    CONVERTER.run([folder])
    return model, {mode: (folder / f"{mode}.tflite").read_bytes() for mode in MODES}


MODES = ("float", "dynamic", "static")


def q_of(content):
    graph = open_graph(content, "file")
    return np.stack([graph.q_values(observation) for observation in SEEN])


def error_of(model, content):
    return float(np.sqrt(((q_of(content) - model(SEEN).numpy()) ** 2).mean()))


def test_a_first_layer_in_float_hears_small_features_again(converted):
    model, made = converted
    edited = refinement.float_first_layer(made["dynamic"], made["float"])
    assert inspection.read(made["dynamic"]).weights["int8"] == 4 * 300 + 300 * 64
    assert inspection.read(edited).weights["int8"] == 300 * 64
    assert error_of(model, edited) < 0.3 * error_of(model, made["dynamic"])


def test_a_first_layer_that_is_much_of_the_network_stays_int8(converted, monkeypatch):
    _, made = converted
    monkeypatch.setattr(refinement, "FIRST_LAYER_SHARE", 0.01)
    assert refinement.float_first_layer(made["dynamic"], made["float"]) is made["dynamic"]


def test_a_file_whose_first_layer_is_float_already_stays_as_it_is(converted):
    _, made = converted
    assert refinement.float_first_layer(made["float"], made["float"]) is made["float"]


@pytest.mark.parametrize("mode", MODES)
def test_a_shifted_bias_shifts_the_values(converted, mode):
    _, made = converted
    shift = np.array([0.5, -0.25, 0.125])
    content = refinement.shift_bias(refinement.shift_bias(made[mode], shift), shift)  # onto no bias, then onto one
    step = inspection.read(made[mode]).q_step
    inside = np.abs(q_of(made[mode])) < np.abs(q_of(made[mode])).max() - 1.1  # an int8 range ends
    difference = (q_of(content) - q_of(made[mode]))[inside]
    np.testing.assert_allclose(difference, np.broadcast_to(2 * shift, inside.shape)[inside], atol=1.01 * step + 1e-5)


def test_a_narrower_range_has_finer_steps_and_cuts_off(converted):
    model, made = converted
    before = inspection.read(made["static"])
    limit = 0.25 * before.q_range[1]
    content = refinement.narrow_range(made["static"], limit)
    after = inspection.read(content)
    assert after.q_step == pytest.approx(limit / 127)
    assert after.q_range == pytest.approx((-limit * 128 / 127, limit))
    assert np.abs(q_of(content)).max() <= limit * 129 / 127
    inside = np.abs(model(SEEN).numpy()) < 0.9 * limit
    assert inside.any()
    finer = np.abs(q_of(content) - model(SEEN).numpy())[inside].mean()
    assert finer <= np.abs(q_of(made["static"]) - model(SEEN).numpy())[inside].mean()
    assert refinement.narrow_range(made["static"], 10 * before.q_range[1]) is made["static"]


def test_what_is_obvious_never_cuts_a_second_best_value_off():
    rng = np.random.default_rng(0)
    for num_actions in (2, 3, 6):
        q = rng.standard_t(2, (500, num_actions))  # heavy tails
        q -= q.mean(axis=1, keepdims=True)
        limit = refinement.obvious(q)
        cut = np.clip(q, -limit, limit)
        np.testing.assert_array_equal(cut.argmax(axis=1), q.argmax(axis=1))
        ordered = np.sort(cut, axis=1)
        assert (ordered[:, -1] > ordered[:, -2]).all()
        assert (np.abs(q).max(axis=1) <= limit).mean() > 0.9


def test_a_state_with_values_a_fifth_beyond_those_that_were_seen_still_has_a_best_action():
    q = np.random.default_rng(0).normal(0, 1, (3_000, 4))
    q -= q.mean(axis=1, keepdims=True)
    limit = refinement.obvious(q)
    beyond = 1.2 * q
    found = agreement.measure(beyond, np.clip(beyond, -limit, limit), 2 * limit / 255, (-limit, limit))
    assert (found.clear, found.tied) == (1.0, 0.0)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_refining_takes_the_median_error_out_and_tells_what_it_did(converted, mode):
    model, made = converted
    q = model(SEEN).numpy()
    content, done = refinement.refine(made[mode], made["float"], None, SEEN, q)
    contents = inspection.read(content)
    clipped = np.clip(q, *contents.q_range)
    median = np.median(q_of(content) - clipped, axis=0)
    assert np.abs(median).max() <= max(contents.q_step, 1e-3)
    shares = [(q_of(file).argmax(axis=1) == q.argmax(axis=1)).mean() for file in (made[mode], content)]
    assert shares[1] > shares[0]
    first = "kept the first layer in float32" if mode == "dynamic" else "cut the values off at"
    assert done[0].startswith(first)
    assert done[-1].startswith("shifted the values of the actions by up to")


def test_a_file_without_int8_is_not_touched(converted):
    model, made = converted
    content, done = refinement.refine(made["float"], made["float"], None, SEEN, model(SEEN).numpy())
    assert content is made["float"]
    assert done == []


@pytest.mark.parametrize("seed", range(20))
def test_what_is_cut_off_never_decides_between_allowed_actions(seed):
    rng = np.random.default_rng(seed)
    q = rng.normal(0, 1, (200, 4)) * rng.exponential(1, (200, 1))
    q[:, 3] -= 5 + rng.exponential(20)  # an action that is nearly always forbidden, and was never learned
    q -= q.mean(axis=1, keepdims=True)
    masks = rng.random((200, 4)) < [0.5, 0.5, 0.9, 0.02]
    masks[:, 2] |= ~masks.any(axis=1)
    limit = refinement.obvious(q, masks)
    chosen, kept = (np.where(masks, values, -np.inf).argmax(axis=1) for values in (q, np.clip(q, -limit, limit)))
    np.testing.assert_array_equal(chosen, kept)
    assert limit < refinement.obvious(q, np.ones_like(masks))


def test_without_masks_all_actions_count():
    q = np.random.default_rng(0).normal(0, 1, (50, 3))
    assert refinement.obvious(q) == refinement.obvious(q, np.ones(q.shape, bool))
    assert refinement.obvious(q[:, :1]) > 0
