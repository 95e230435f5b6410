"""Students: how they are named, counted, built and lined up."""

import itertools

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.compression import canonical
from rlplatform.compression.students import Architecture, build, ladder, of_teacher, parameters, parse
from rlplatform.config import Convolution
from rlplatform.errors import UserError

NUMBER = st.integers(1, 300)
ARCHITECTURES = st.builds(
    Architecture,
    st.lists(st.builds(Convolution, NUMBER, NUMBER, NUMBER), max_size=3).map(tuple),
    st.lists(NUMBER, max_size=3).map(tuple),
)


@given(architecture=ARCHITECTURES)
def test_a_name_says_all(architecture):
    assert parse(str(architecture)) == architecture


def test_names_are_short():
    assert str(Architecture((), (32, 16))) == "32-16"
    assert str(Architecture()) == "linear"
    assert str(Architecture((Convolution(16, 8, 4), Convolution(8, 4, 2)), (32,))) == "16x8s4-8x4s2 32"


@pytest.mark.parametrize("text", ["", "0", "32-x", "8x0s1", "wide", "32--x"])
def test_what_is_no_architecture_is_refused(text):
    with pytest.raises(UserError, match="an architecture is written like 32-32"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "shape"),
    [("linear", (4,)), ("16", (4,)), ("8-6", (3,)), ("4x3s1 16", (10, 10, 4)), ("4x5s2-3x3s1", (12, 12, 2))],
)
def test_weights_are_counted_without_building(text, shape):
    sample = np.random.default_rng(0).normal(size=(50, *shape)).astype(np.float32)
    model = build(parse(text), sample, 3)
    assert parameters(parse(text), shape, 3) == sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    assert model.output_shape == (None, 3)


def test_a_convolution_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="8x8s4 does not fit observations of shape"):
        parameters(parse("8x8s4"), (6, 6, 1), 2)


@pytest.mark.parametrize(("text", "shape"), [("12-8", (5,)), ("4x3s1 8", (8, 8, 2))])
def test_what_is_done_to_the_observation_folds_into_the_first_layer_but_for_an_images_shift(text, shape):
    rng = np.random.default_rng(0)
    sample = (rng.normal(size=(200, *shape)) * 30 + 7).astype(np.float32)
    model = build(parse(text), sample, 4)
    folded = canonical(model).model
    shifts = [layer for layer in folded.layers if type(layer) is keras.layers.Rescaling]
    assert len(shifts) == (len(shape) > 1)
    for shift in shifts:
        assert shift.scale == 1.0
        assert_allclose(np.unique(shift.offset), -np.median(sample), rtol=1e-6)
    assert folded.count_params() == parameters(parse(text), shape, 4)
    assert_array_equal(folded(sample).numpy().argmax(axis=1), model(sample).numpy().argmax(axis=1))


def test_an_image_is_seen_as_what_differs_from_its_background():
    sample = np.full((5, 6, 6, 1), 107, np.uint8)
    sample[0, :2, :3], sample[1, 2:, 4] = 236, 72
    student = build(parse("4x3s1"), sample, 2)
    seen = keras.Model(student.input, student.get_layer("rescale").output)(sample.astype(np.float32)).numpy()
    assert_allclose(seen[2:], 0.0, atol=1e-6)
    assert_allclose([seen.max(), seen.min()], [1.0, -35 / 129], rtol=1e-5)
    binary = np.zeros((5, 6, 6, 2), np.uint8)
    binary[0, 0] = 1
    student = build(parse("4x3s1"), binary, 2)
    assert student.get_layer("rescale").get_config()["scale"] == 1.0
    assert student.get_layer("rescale").get_config()["offset"] == 0.0


@pytest.mark.parametrize(
    ("teacher", "shape", "last", "step"),
    [
        ("256-256", (4,), "linear", 4),
        ("64", (6,), "linear", 4),
        ("32x8s4-64x4s2-64x3s1 512", (84, 84, 4), None, 2),
        ("16x3s1 128", (10, 10, 4), None, 2),
    ],
)
def test_a_ladder_leads_from_the_teacher_down(teacher, shape, last, step):
    rungs = ladder(parse(teacher), shape, 3)
    sizes = [parameters(rung, shape, 3) for rung in rungs]
    assert rungs[0] == parse(teacher)
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] < sizes[0] / 20
    assert all(after > before / step for before, after in itertools.pairwise(sizes[:-1])), "no rung is far away"
    if last is not None:
        assert str(rungs[-1]) == last


def test_channels_and_units_of_an_images_student_shrink_apart():
    rungs = {str(rung) for rung in ladder(parse("16x3s1 128"), (10, 10, 6), 4)}
    assert {"8x3s1 32", "4x3s1 64", "16x3s2 64"} <= rungs, "what fills a budget of 19 kB"
    assert not any(rung.hidden and rung.hidden[0] > 128 for rung in map(parse, rungs)), "none is wider than its teacher"


def test_a_teachers_shape_is_read_from_its_canonical_network():
    sample = np.random.default_rng(0).normal(size=(50, 10, 10, 4)).astype(np.float32)
    for text in ("16x3s1 128", "8x3s2-4x3s1"):
        assert of_teacher(canonical(build(parse(text), sample, 3)).model) == parse(text)
