"""Backbones see what they were trained on, are the networks that were published, and say which file they miss."""

import numpy as np
import pytest
import tf_keras as keras
from hypothesis import given
from hypothesis import strategies as st
from known import save_weights, tiny_backbone
from numpy.testing import assert_allclose, assert_array_equal

from rlplatform.agents import backbones, networks
from rlplatform.config import Config, NetworkConfig
from rlplatform.errors import UserError

RNG = np.random.default_rng(0)
SMALL = NetworkConfig(torso="mobilenet_v2", backbone_alpha=0.35)


@pytest.fixture
def tiny(monkeypatch):
    """`vgg16` with the layers of a tiny network."""
    monkeypatch.setitem(backbones.BACKBONES, "vgg16", backbones.BACKBONES["vgg16"]._replace(make=tiny_backbone))
    return NetworkConfig(torso="vgg16", hidden_units=(8,))


def built(shape, dtype="uint8", **network):
    return networks.build(Config().replace(network={"torso": "vgg16", "hidden_units": [8]} | network), shape, dtype, 3)


def seen(network, frames):
    """What the backbone is shown of frames."""
    return keras.Model(network.input, network.get_layer("pixels").output)(frames).numpy()


def frames(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v2"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_backbone_sees_grey_and_coloured_frames_as_it_was_trained_on_them(tiny, monkeypatch, name, channels):
    tried = backbones.BACKBONES[name]._replace(make=tiny_backbone)
    monkeypatch.setitem(backbones.BACKBONES, name, tried)
    shown = frames(2, 40, 48, channels)
    expected = tried.preprocess(np.broadcast_to(shown, (2, 40, 48, 3)).astype(np.float32))
    assert_allclose(seen(built((40, 48, channels), torso=name), shown), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "colours"),
    [
        (2, [[1, 0], [0.5, 0.5], [0, 1]]),
        (4, [[0.75, 0.25, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.25, 0.75]]),
        (6, [[0.5, 0, 0, 0.5, 0, 0], [0, 0.5, 0, 0, 0.5, 0], [0, 0, 0.5, 0, 0, 0.5]]),
    ],
)
def test_stacked_frames_become_colours_by_hand(channels, colours):
    matrix, offset = backbones.as_trained(lambda pixels: pixels, channels)
    assert_allclose(matrix, 255.0 * np.array(colours).T)
    assert_array_equal(offset, 0.0)


@given(st.integers(1, 64))
def test_whatever_the_channels_white_stays_white_and_every_channel_counts_as_much(channels):
    matrix, _ = backbones.as_trained(lambda pixels: pixels / 255.0, channels)
    assert_allclose(np.ones(channels) @ matrix, 1.0)
    assert_allclose(matrix.sum(axis=1), 3.0 / channels)
    assert (matrix >= 0.0).all()


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((10, 40), 0, (32, 40)), ((84, 84), 0, (84, 84)), ((210, 160), 96, (96, 96)), ((36, 36), 36, (36, 36))],
)
def test_frames_are_resized_to_what_is_asked_for_and_to_at_least_32(tiny, shape, size, expected):
    network = built((*shape, 1), backbone_size=size)
    shown = frames(1, *shape, 1)
    assert seen(network, shown).shape == (1, *expected, 3)
    assert ("resize" in [layer.name for layer in network.layers]) == (shape != expected)
    white = backbones.BACKBONES["vgg16"].preprocess(np.full((1, *expected, 3), 255.0, np.float32))
    assert_allclose(seen(network, np.full_like(shown, 255)), white, rtol=1e-5)


def test_a_network_with_a_backbone_is_copied_from_its_configuration(tiny):
    network = built((36, 36, 4), "float32")
    copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    shown = RNG.random((2, 36, 36, 4)).astype(np.float32)
    assert_array_equal(copy(shown), network(shown))
    assert network(shown).shape == (2, 3)


def test_published_weights_play_as_they_were_trained_without_normalisation(tiny, tmp_path):
    template = tiny_backbone((32, 32, 3), 1.0)
    loaded = backbones.load(save_weights(template, tmp_path / "own.h5"), tiny)
    assert [layer.name for layer in loaded.layers if layer.weights] == ["first", "depthwise", "project"]
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in loaded.layers)
    image = RNG.uniform(-9, 9, (2, 32, 32, 3)).astype(np.float32)
    assert_allclose(loaded(image), template(image), atol=1e-4)
    assert_array_equal(loaded(image, training=True), loaded(image))


@pytest.mark.exhaustive
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "count"), [(NetworkConfig(torso="vgg16"), 13), (SMALL, 52)], ids=["vgg16", "mobilenet_v2"]
)
def test_the_published_architectures_are_loaded_from_files_of_their_weights(config, count, tmp_path):
    template = backbones.BACKBONES[config.torso].make((32, 32, 3), config.backbone_alpha)
    loaded = backbones.load(save_weights(template, tmp_path / "own.h5"), config)
    assert sum(bool(layer.weights) for layer in loaded.layers) == count
    image = RNG.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
    expected = template(image).numpy()
    assert_allclose(loaded(image), expected, atol=1e-5 * np.abs(expected).max())


def test_a_file_that_is_damaged_or_of_another_network_is_refused(tiny, tmp_path, monkeypatch):
    other = backbones.BACKBONES["mobilenet_v2"]._replace(
        make=lambda shape, alpha: keras.Sequential([keras.Input(shape), keras.layers.Conv2D(4, 3)])
    )
    monkeypatch.setitem(backbones.BACKBONES, "mobilenet_v2", other)
    path = save_weights(tiny_backbone((32, 32, 3), 1.0), tmp_path / "own.h5")
    with pytest.raises(UserError, match=r"holds no weights of mobilenet_v2 at alpha 0\.35"):
        backbones.load(path, SMALL)
    with pytest.raises(UserError, match=r"network\.torso must say whose they are: vgg16 or mobilenet_v2"):
        backbones.load(path, NetworkConfig(torso="nature"))
    content = path.read_bytes()
    for kept in (0, 100, len(content) // 2, len(content) - 10):
        path.write_bytes(content[:kept])
        with pytest.raises(UserError, match=r"own\.h5 holds no weights of vgg16 .* or it is damaged"):
            backbones.load(path, tiny)


@pytest.mark.parametrize(
    ("network", "shape", "name"),
    [
        ({"torso": "vgg16"}, (84, 84, 4), "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        (
            {"torso": "mobilenet_v2"},
            (84, 84, 4),
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
        ),
        (
            {"torso": "mobilenet_v2", "backbone_alpha": 0.35, "backbone_size": 96},
            (84, 84, 4),
            "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_0.35_96_no_top.h5",
        ),
    ],
)
def test_the_file_that_fits_has_its_published_name(network, shape, name):
    assert backbones.published(NetworkConfig(**network), shape) == name


@pytest.mark.parametrize(
    ("shape", "network", "sentence"),
    [
        ((4,), {}, "'vgg16' needs images of at least 1 x 1 .*; got .*, for which 'mlp' works"),
        (
            (36, 36, 1),
            {"backbone_size": 16},
            "backbone_size must be at least 32, or 0 for the frames' own size; got 16",
        ),
    ],
)
def test_what_no_backbone_can_see_is_refused(shape, network, sentence):
    with pytest.raises(UserError, match=sentence):
        built(shape, "float32", **network)
