import signal

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter

from rlplatform.agents import networks
from rlplatform.compression import (
    agreement,
    canonical,
    chain,
    choice,
    conversion,
    convert,
    convert_all,
    converter,
    flatfile,
    inspection,
    micro,
    students,
)
from rlplatform.compression.reference import Network
from rlplatform.config import Config
from rlplatform.errors import RunError, UserError
from rlplatform.runtime import open_graph

pytestmark = pytest.mark.slow  # every one of them runs TensorFlow's converter

RANGES = np.array([2.4, 3.0, 0.2, 3.0], np.float32)  # CartPole's, which differ fifteenfold


def vector_network(hidden=(64, 64), offset=100.0):
    """A random network on four numbers whose values lie around 100."""
    keras.utils.set_random_seed(1)
    model = networks.build(Config().replace(network={"hidden_units": hidden}), (4,), "float32", 3)
    kernel, bias = model.get_layer("q").get_weights()
    model.get_layer("q").set_weights([kernel, bias + offset])
    return model


def vectors(count=400, seed=0):
    return (np.random.default_rng(seed).uniform(-1, 1, (count, 4)) * RANGES).astype(np.float32)


def answers(content, observations, scaling=None):
    """[N, A] values of a file, quantised and dequantised by hand."""
    graph = open_graph(content, "file")
    rows = []
    for observation in observations:
        if graph.observation.dtype == np.int8:
            given = observation.astype(np.float64)
            if scaling is not None:
                given = (given - scaling.offset) * scaling.multiplier
            given = np.rint(given / graph.observation.scale) + graph.observation.zero_point
            observation = np.clip(given, -128, 127).astype(np.int8)
        graph.write(graph.observation.index, observation.reshape(graph.observation.shape))
        graph.invoke()
        row = graph.read(graph.q.index, 0)[0]
        rows.append((row - float(graph.q.zero_point)) * graph.q.scale if graph.q.dtype == np.int8 else row)
    return np.array(rows, np.float64)


def kept(model, content, observations, scaling=None):
    """Share of states with the network's action, and the error relative to the spread of the centred values."""
    expected = np.clip(agreement.centred(model(observations).numpy()), *inspection.read(content).q_range)
    given = answers(content, observations, scaling)
    error = np.sqrt(((given - expected) ** 2).mean()) / expected.std()
    return (given.argmax(axis=1) == expected.argmax(axis=1)).mean(), error


@pytest.fixture(scope="module")
def for_cpu():
    model = vector_network()
    return model, convert(canonical(model).model, vectors(), "cpu", "dynamic")


@pytest.fixture(scope="module")
def for_mcu():
    model = vector_network()
    return model, convert(canonical(model).model, vectors(), "mcu")


def test_the_float_file_gives_the_networks_centred_values_and_its_action(for_cpu):
    model, files = for_cpu
    seen = vectors(seed=1)
    expected = agreement.centred(model(seen).numpy())
    np.testing.assert_allclose(answers(files.float_file, seen), expected, atol=2e-5)  # values are around 100
    graph = open_graph(files.float_file, "file")
    assert graph.observation.shape == (1, 4)
    assert graph.action is not None
    assert (graph.action.dtype, graph.action.shape) == (np.int32, (1,))
    for observation, row in zip(seen[:50], expected, strict=False):
        graph.write(graph.observation.index, observation.reshape(graph.observation.shape))
        graph.invoke()
        assert graph.read(graph.action.index, 0)[0] == row.argmax()


def test_for_a_cpu_large_layers_become_int8_and_small_ones_stay_float(for_cpu):
    model, files = for_cpu
    contents = inspection.read(files.int8_file)
    assert files.quantisation["method"] == "dynamic"
    assert files.scaling is None
    assert contents.weights["int8"] == 64 * 64  # 4 x 64 and 64 x 3 are below 1,024
    assert contents.weights["float32"] >= 4 * 64 + 64 * 3
    assert not contents.static
    assert len(files.int8_file) < 0.5 * len(files.float_file)
    share, error = kept(model, files.int8_file, vectors(seed=1))
    assert share > 0.98
    assert error < 0.03


def test_for_a_microcontroller_everything_is_int8_from_end_to_end(for_mcu):
    model, files = for_mcu
    contents = inspection.read(files.int8_file)
    assert files.quantisation["method"] == "static"
    assert contents.operators == ("FULLY_CONNECTED",) * 3
    assert set(contents.weights) == {"int8"}
    assert contents.float_islands == contents.foreign == ()
    graph = open_graph(files.int8_file, "file")
    assert graph.observation.dtype == graph.q.dtype == np.int8
    assert graph.action is None
    assert contents.q_step == pytest.approx(graph.q.scale)
    assert files.quantisation["dense_scales"] == "per layer"
    share, error = kept(model, files.int8_file, vectors(seed=1), files.scaling)
    assert share > 0.95
    assert error < 0.1


def test_every_feature_uses_the_whole_int8_range(for_mcu):
    _, files = for_mcu
    seen = vectors()
    graph = open_graph(files.int8_file, "file")
    steps = (seen - files.scaling.offset) * files.scaling.multiplier / graph.observation.scale
    assert (np.ptp(steps, axis=0) > 250).all()


def test_a_feature_that_never_changes_does_not_break_the_scaling():
    seen = vectors()
    seen[:, 1] = 7.0
    scaling = conversion._input_scaling(seen)
    assert np.isfinite(scaling.multiplier).all()
    np.testing.assert_allclose(((seen - scaling.offset) * scaling.multiplier)[:, 1], 0.0)


def test_several_networks_are_converted_as_each_of_them_alone(for_mcu):
    model, alone = for_mcu
    small = canonical(vector_network((8,))).model
    first, second = convert_all([canonical(model).model, small], vectors(), "mcu")
    assert (first.float_file, first.int8_file) == (alone.float_file, alone.int8_file)
    assert len(second.int8_file) < len(first.int8_file)
    assert kept(small, second.int8_file, vectors(seed=1), second.scaling)[0] > 0.95
    assert convert_all([], vectors(), "mcu") == []


def test_a_tiny_network_for_a_cpu_becomes_static_int8_where_that_is_faithful(monkeypatch):
    monkeypatch.setattr(conversion, "_has_edge_quantizer", lambda: False)
    model = vector_network(hidden=(24, 24))
    files = convert(canonical(model).model, vectors(), "cpu")
    contents = inspection.read(files.int8_file)
    assert files.quantisation["method"] == "static"
    assert contents.static
    assert set(contents.weights) == {"int8"}
    assert contents.float_islands == ()
    graph = open_graph(files.int8_file, "file")
    assert graph.observation.dtype == graph.q.dtype == np.float32  # a CPU's file takes and gives floats
    assert kept(model, files.int8_file, vectors(seed=1))[0] > 0.95


def test_where_int8_would_not_help_a_cpu_the_file_says_that_nothing_was_done():
    files = convert(canonical(vector_network(hidden=(8, 8))).model, vectors(), "cpu", "dynamic")
    assert files.quantisation["method"] == "none"
    assert "no layer has the 1,024 weights" in files.quantisation["reason"]
    assert set(files.quantisation["weights"]) == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_a_network_on_bytes_takes_bytes(target):
    keras.utils.set_random_seed(0)
    model = networks.build(Config().replace(network={"torso": "nature"}), (36, 36, 2), "uint8", 3)
    seen = np.random.default_rng(0).integers(0, 200, (60, 36, 36, 2), np.uint8)
    files = convert(canonical(model).model, seen, target)
    graph = open_graph(files.int8_file, "file")
    assert open_graph(files.float_file, "file").observation.dtype == np.uint8
    if target == "mcu":  # one step of the input is one, from -128 for 0
        assert (graph.observation.dtype, graph.observation.scale, graph.observation.zero_point) == (np.int8, 1.0, -128)
    else:
        assert graph.observation.dtype == np.uint8
    expected = agreement.centred(model(seen).numpy())
    np.testing.assert_allclose(answers(files.float_file, seen), expected, atol=1e-5)
    share, _ = kept(model, files.int8_file, seen)
    assert share > 0.8


def in_float64(model, seen):
    """What a canonical network's numbers give where nothing is rounded on the way."""
    features = tf.constant(seen.astype(np.float64))
    for layer in model.layers[1:]:
        if isinstance(layer, keras.layers.Rescaling):
            features = features * np.float64(layer.scale) + np.float64(layer.offset)
        elif isinstance(layer, keras.layers.Conv2D):
            kernel, bias = (weight.astype(np.float64) for weight in layer.get_weights())
            features = layer.activation(tf.nn.conv2d(features, kernel, layer.strides, "VALID") + bias)
        elif isinstance(layer, keras.layers.Flatten):
            features = tf.reshape(features, (len(seen), -1))
        else:
            kernel, bias = (weight.astype(np.float64) for weight in layer.get_weights())
            features = layer.activation(features @ kernel + bias)
    return features.numpy()


@pytest.mark.slow
def test_the_background_of_an_image_is_taken_away_before_float_rounds_it_and_folds_in_whole_numbers():
    rng = np.random.default_rng(0)
    seen = np.full((100, 36, 36, 4), 187, np.uint8)
    for image in seen:
        row, column = rng.integers(0, 34, 2)
        image[row : row + 2, column : column + 2] = 240
    model = canonical(students.build(students.parse("8x8s4-8x4s2 16"), seen, 3, seed=0)).model
    expected = in_float64(model, seen)
    files = convert(model, seen, "mcu")
    assert inspection.read(files.float_file).operators.count("ADD") == 1
    assert "ADD" not in inspection.read(files.int8_file).operators
    graph = open_graph(files.int8_file, "file")
    assert (graph.observation.scale, graph.observation.zero_point) == (1.0, -128)
    exact, folded = (
        np.abs(answers(convert(each, seen, "mcu").float_file, seen) - expected).max() / np.abs(expected).max()
        for each in (model, chain.fold_shift(model))
    )
    assert exact < 1e-6
    assert folded > 3 * exact


@pytest.mark.parametrize(("target", "mode"), [("mcu", "static"), ("cpu", "static"), ("mcu", "int16x8")])
def test_whole_numbers_are_of_joined_pixels_and_the_same(target, mode, monkeypatch):
    seen = np.random.default_rng(0).integers(0, 256, (50, 36, 36, 4), np.uint8)
    model = canonical(students.build(students.parse("8x8s4-8x4s2 16"), seen, 3, seed=0)).model
    files = convert(model, seen, target, mode)
    monkeypatch.setattr(chain, "join_pixels", lambda model: model)
    parted = convert(model, seen, target, mode)
    given = [graph_input(content) for content in (files.float_file, files.int8_file, parted.int8_file)]
    assert given == [[1, 36, 36, 4], [1, 36, 9, 16], [1, 36, 36, 4]]
    q, parted_q = (open_graph(each.int8_file, "file").q_batch(seen) for each in (files, parted))
    np.testing.assert_allclose(q, parted_q, atol=1.01 * inspection.read(files.int8_file).q_step)


def graph_input(content):
    """The shape of what the first convolution is given."""
    model = flatfile.read(content)
    graph = model.subgraphs[0]
    place = inspection.read(content).operators.index("CONV_2D")
    return graph.tensors[graph.operators[place].inputs[0]].shape.tolist()


@pytest.mark.slow
def test_static_int8_can_be_asked_for_on_a_cpu():
    model = vector_network()
    files = convert(canonical(model).model, vectors(), "cpu", "static")
    contents = inspection.read(files.int8_file)
    assert contents.static
    assert contents.q_step > 0
    assert contents.operators[0] == "QUANTIZE"
    assert contents.operators[-2:] == ("DEQUANTIZE", "ARG_MAX")
    assert kept(model, files.int8_file, vectors(seed=1))[0] > 0.9


@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_int16_activations_lose_less_than_int8(target, for_mcu):
    model = vector_network()
    files = convert(canonical(model).model, vectors(), target, "int16x8")
    contents = inspection.read(files.int8_file)
    assert files.quantisation["method"] == "int16x8"
    assert contents.activations == "int16"
    assert set(contents.weights) == {"int8"}
    assert contents.float_islands == contents.foreign == ()
    graph = open_graph(files.int8_file, "file", scaling=None if files.scaling is None else files.scaling._asdict())
    assert graph.observation.dtype == graph.q.dtype == (np.int16 if target == "mcu" else np.float32)
    seen = vectors(seed=1)
    expected = agreement.centred(model(seen).numpy())
    error = np.stack([graph.q_values(observation) for observation in seen]) - expected
    assert np.sqrt((error**2).mean()) / expected.std() < kept(model, for_mcu[1].int8_file, seen, for_mcu[1].scaling)[1]


def test_convolutions_in_int16_are_for_microcontrollers_and_lose_less_than_in_int8():
    keras.utils.set_random_seed(0)
    model = networks.build(Config().replace(network={"torso": "minatar"}), (10, 10, 4), "uint8", 3)
    seen = np.random.default_rng(0).integers(0, 2, (300, 10, 10, 4), np.uint8)
    folded = canonical(model).model
    with pytest.raises(UserError, match="int16x8 with convolutions is for microcontrollers"):
        convert(folded, seen, "cpu", "int16x8")
    errors = []
    for quantisation in ("static", "int16x8"):
        files = convert(folded, seen, "mcu", quantisation)
        assert inspection.read(files.int8_file).float_islands == ()
        given = open_graph(files.int8_file, "file").q_batch(seen)
        errors.append(np.square(given - folded(seen.astype(np.float32)).numpy()).mean())
    assert errors[1] < errors[0] / 10
    if micro.missing() is None:
        step = agreement.step_of(given, 0.0)
        assert np.abs(micro.run(files.int8_file, seen[:50]).q - given[:50]).max() < step / 10


def test_layer_norm_in_int16_keeps_the_choices_that_int8_loses_and_microcontrollers_agree():
    keras.utils.set_random_seed(0)
    config = Config().replace(network={"hidden_units": (32, 32), "layer_norm": True})
    model = canonical(networks.build(config, (4,), "float32", 3)).model
    sizes = np.geomspace(0.02, 1.0, 600)[:, None]  # of the features, which LayerNorm evens out
    seen = np.random.default_rng(0).permutation((vectors(600) * sizes).astype(np.float32))
    q = model(seen).numpy()
    step = agreement.step_of(q, 0.0)
    errors = []
    for quantisation in ("static", "int16x8"):
        files = convert(model, seen, "mcu", quantisation)
        scaling = files.scaling._asdict()
        given = open_graph(files.int8_file, "file", scaling=scaling).q_batch(seen)
        errors.append(np.sqrt(((given - q) ** 2).mean()) / step)
    assert errors[1] < 2.0 < errors[0] / 2
    assert agreement.measure(q, given, step, inspection.read(files.int8_file).q_range).clear > 0.99
    if micro.missing() is None:
        assert np.abs(micro.run(files.int8_file, seen[:200], scaling).q - given[:200]).max() < step


def test_layers_of_any_size_become_int8_by_another_quantiser_if_it_is_there(monkeypatch, for_cpu):
    model = canonical(vector_network()).model
    files = convert(model, vectors(), "cpu", "dynamic_all")
    contents = inspection.read(files.int8_file)
    assert files.quantisation["method"] == "dynamic_all"
    assert files.quantisation["dense_scales"] == "per layer"
    assert contents.activations == "float32"
    assert contents.weights["int8"] == 64 * 64 + 64 * 3  # The first layer stays float32: see `refinement`.
    assert kept(vector_network(), files.int8_file, vectors(seed=1))[0] > 0.98
    made = {"dynamic": for_cpu[1].int8_file, "dynamic_all": files.int8_file}
    monkeypatch.setattr(choice.gates, "STEPS", 10.0)
    assert choice.choose(made, vectors(), model(vectors()).numpy())[0] == "dynamic_all"
    monkeypatch.setattr(choice.gates, "STEPS", 0.0)
    mode, words = choice.choose(made, vectors(), model(vectors()).numpy())
    assert mode == "dynamic"
    assert words.endswith("dynamic_all int8 would be smaller, but its values depend on the kernels that compute them")
    monkeypatch.setattr(conversion, "_has_edge_quantizer", lambda: False)
    with pytest.raises(UserError, match=r"dynamic_all needs ai-edge-quantizer: pip install 'rlplatform\[quantize\]'"):
        convert(model, vectors(), "cpu", "dynamic_all")


# --- action masks ---------------------------------------------------------------------------------------------------


def masks_of(count, num_actions=3, seed=0):
    masks = np.random.default_rng(seed).random((count, num_actions)) < 0.5
    masks[np.arange(count), np.arange(count) % num_actions] = True
    return masks


def masked_file_answers(content, observations, masks):
    """The values and the actions of a file, asked through its signature."""
    runner = Interpreter(model_content=content).get_signature_runner("act")
    rows = [
        runner(observation=observation[None], action_mask=mask[None])
        for observation, mask in zip(observations, masks, strict=True)
    ]
    return np.concatenate([row["q"] for row in rows]), np.concatenate([row["action"] for row in rows])


@pytest.fixture(scope="module")
def masked_for_cpu():
    model = vector_network()
    return model, convert(canonical(model).model, vectors(), "cpu", masks=masks_of(400))


@pytest.mark.parametrize("kind", ["float_file", "int8_file"])
def test_the_action_is_the_best_that_the_mask_allows_and_the_values_are_all_there(masked_for_cpu, for_cpu, kind):
    model, files = masked_for_cpu
    count = 100_000
    seen, masks = vectors(count, seed=1), masks_of(count, seed=1)
    q, actions = masked_file_answers(getattr(files, kind), seen, masks)
    assert masks[np.arange(count), actions].all()
    np.testing.assert_array_equal(actions, np.where(masks, q, -np.inf).argmax(axis=1))
    np.testing.assert_array_equal(q[:50], masked_file_answers(getattr(files, kind), seen[:50], ~masks[:50])[0])
    contents = inspection.read(getattr(files, kind))
    expected = np.clip(agreement.centred(model(seen).numpy()), *contents.q_range)
    assert np.sqrt(((q - expected) ** 2).mean()) < (2e-5 if kind == "float_file" else 0.02 * np.ptp(expected))
    assert contents.operators[-2:] == ("SELECT_V2", "ARG_MAX")
    assert not contents.foreign
    graph = open_graph(getattr(files, kind), "file")
    assert (graph.action_mask.shape, graph.action_mask.dtype) == ((1, 3), np.bool_)
    assert open_graph(getattr(for_cpu[1], kind), "file").action_mask is None


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "mcu"])
def test_a_static_file_computes_in_int8_up_to_the_mask(target):
    model, seen, masks = vector_network(), vectors(), masks_of(400)
    files = convert(canonical(model).model, seen, target, "static", masks)
    contents = inspection.read(files.int8_file)
    assert contents.static
    assert contents.float_islands == contents.foreign == ()
    if target == "mcu":  # The runtime applies the mask.
        assert contents.operators == ("FULLY_CONNECTED",) * 3
        assert open_graph(files.int8_file, "file").action_mask is None
    else:
        assert contents.operators[-3:] == ("DEQUANTIZE", "SELECT_V2", "ARG_MAX")
        seen, masks = vectors(5_000, seed=1) * 3, masks_of(5_000, seed=1)  # beyond the range: many values are the least
        q, actions = masked_file_answers(files.int8_file, seen, masks)
        assert (q.min(axis=1) == contents.q_range[0]).sum() > 100
        np.testing.assert_array_equal(actions, np.where(masks, q, -np.inf).argmax(axis=1))


@pytest.mark.parametrize("mask", [False, True])
def test_the_network_that_is_kept_takes_batches_with_and_without_masks(tmp_path, mask):
    model, seen, masks = vector_network(), vectors(700), masks_of(700)
    conversion.save(model, "float32", tmp_path / "network", mask=mask, batch=None)
    kept_network, q = Network(tmp_path / "network"), model(seen).numpy()
    np.testing.assert_allclose(kept_network.q_values(seen), q, rtol=1e-5)
    assert [kept_network.act(observation) for observation in seen[:20]] == q[:20].argmax(axis=1).tolist()
    if mask:
        actions = [kept_network.act(*state) for state in zip(seen[:50], masks[:50], strict=True)]
        assert actions == np.where(masks, q, -np.inf)[:50].argmax(axis=1).tolist()


def test_wrong_targets_are_refused_with_what_is_accepted():
    model = canonical(vector_network()).model
    with pytest.raises(UserError, match="unknown target 'gpu'; choices: cpu, mcu"):
        convert(model, vectors(), "gpu")
    with pytest.raises(UserError, match="dynamic int8 does not run on microcontrollers"):
        convert(model, vectors(), "mcu", "dynamic")
    with pytest.raises(UserError, match="unknown quantisation 'int16'; did you mean 'int16x8'"):
        convert(model, vectors(), "cpu", "int16")


def test_what_the_converter_says_last_becomes_the_error(tmp_path):
    (tmp_path / "jobs.json").write_text('[{"mode": "float", "saved_model": "missing", "output": "f.tflite"}]')
    np.save(tmp_path / "calibration.npy", vectors())
    with pytest.raises(RunError, match=r"the conversion failed: .*missing"):
        converter.CONVERTER.run([tmp_path])


@pytest.mark.parametrize(("words", "expected"), [("one\nboom\n", "boom"), ("", "it ended with 3")])
def test_a_process_that_dies_is_told_by_its_last_line(tmp_path, monkeypatch, words, expected):
    program = tmp_path / "dies.py"
    program.write_text(f"import os, sys; sys.stderr.write({words!r}); sys.stderr.flush(); os._exit(3)")
    monkeypatch.setattr(converter.worker, "__file__", str(program))
    with pytest.raises(RunError, match=f"the conversion failed: {expected}"):
        converter.Converter().run([tmp_path])


def test_a_process_that_has_ended_in_between_is_started_again(tmp_path, monkeypatch):
    program, count = tmp_path / "answers.py", tmp_path / "count"
    program.write_text(
        f"import json, pathlib; count = pathlib.Path({str(count)!r}); count.write_text(count.read_text() + '1')\n"
        "for _ in range(2): print(json.dumps('wrong' if 'bad' in input() else ''), flush=True)\n"
    )
    count.write_text("")
    monkeypatch.setattr(converter.worker, "__file__", str(program))
    process = converter.Converter()
    process.start()
    for _ in range(3):
        process.run([tmp_path / "good"])
    with pytest.raises(RunError, match="the conversion failed: wrong"):
        process.run([tmp_path / "bad"])
    process.run([tmp_path / "good"])
    process.end()
    process.end()
    assert count.read_text() == "111"


def test_after_an_interruption_nobody_is_given_an_answer_that_was_for_another(tmp_path, monkeypatch):
    program = tmp_path / "slow.py"
    program.write_text(
        "import json, time\n"
        "while True:\n    asked = input()\n    time.sleep(3 if 'slow' in asked else 0)\n"
        "    print(json.dumps(asked), flush=True)\n"
    )
    monkeypatch.setattr(converter.worker, "__file__", str(program))
    process = converter.Converter()

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            process.run([tmp_path / "slow"])
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(RunError, match="quick"):
        process.run([tmp_path / "quick"])
    process.end()
