"""Runs with a backbone: frozen layers stay bit for bit, fine-tuned ones move, and the file is needed only once."""

import numpy as np
import pytest
from known import save_weights, tiny_backbone
from numpy.testing import assert_array_equal
from quick import QUICK

from rlplatform import api
from rlplatform.agents import backbones
from rlplatform.compression import canonical
from rlplatform.errors import UserError
from rlplatform.runtime import Policy

CATCH = "rlplatform.envs.probes:Catch"
SHORT = [*QUICK, "training.total_steps=96", "training.gradient_steps=1"]


@pytest.fixture
def tiny(monkeypatch):
    """`vgg16` with the layers of a tiny network."""
    monkeypatch.setitem(backbones.BACKBONES, "vgg16", backbones.BACKBONES["vgg16"]._replace(make=tiny_backbone))
    return ["network.torso=vgg16"]


def layers(network):
    return {layer.name: layer.get_weights() for layer in network.layers if layer.weights}


def train(source, out, torso, steps=96, resume=False, **transfer):
    settings = [f"transfer.{key}={value}" for key, value in transfer.items()]
    return api.train(
        CATCH,
        preset="dqn",
        seed=1,
        steps=steps,
        out=out,
        resume=resume,
        overrides=[*SHORT, *torso, *settings, f'transfer.source="{source}"'],
        progress=False,
    )


def assert_learned(run, source, moved):
    """Those of the backbone's layers that are in `moved`, and all the layers after it, are not what they were."""
    before, after = layers(backbones.load(source, run.config.network)), layers(run.network("last"))
    head = after.keys() - before.keys()
    assert {"dense_0", "q"} <= head
    for name, weights in before.items():
        if name in moved:
            assert all(not np.array_equal(a, b) for a, b in zip(weights, after[name], strict=True)), name
        else:
            for weight, kept in zip(weights, after[name], strict=True):
                assert_array_equal(kept, weight, err_msg=name)
    first = layers(run.fresh_network())
    assert all(not np.array_equal(first[name][0], after[name][0]) for name in head)


@pytest.mark.slow
@pytest.mark.parametrize(("fine_tuned", "moved"), [(0, set()), (2, {"depthwise", "project"})])
def test_a_backbone_is_frozen_first_and_its_last_layers_are_fine_tuned(tiny, tmp_path, fine_tuned, moved):
    source = save_weights(tiny_backbone((32, 32, 3), 1.0), tmp_path / "own.h5")
    run = train(source, tmp_path / "run", tiny, frozen_layers=-1, fine_tuned_layers=fine_tuned)
    assert run.config.transfer.frozen_layers == 3
    assert_learned(run, source, moved)
    source.unlink()
    longer = train(source, run.path, tiny, steps=128, resume=True, frozen_layers=3, fine_tuned_layers=fine_tuned)
    assert longer.network("last")(np.zeros((1, 36, 36, 1), np.uint8)).shape == (1, 3)


def test_without_its_file_a_backbone_is_refused_and_nothing_is_written(tiny, tmp_path):
    with pytest.raises(
        UserError, match=r"bring vgg16_weights_tf_dim_ordering_tf_kernels_notop\.h5, which tf_keras keeps"
    ):
        train("", tmp_path / "run", tiny)
    with pytest.raises(UserError, match="there is no file"):
        train(tmp_path / "nowhere.h5", tmp_path / "run", tiny)
    (tmp_path / "cut.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"cut\.h5 is no HDF5 file, or it is cut short"):
        train(tmp_path / "cut.h5", tmp_path / "run", tiny)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_random_weights_are_taken_where_that_is_said(tiny, tmp_path):
    run = train("none", tmp_path / "run", tiny, frozen_layers=1)
    first, after = layers(run.fresh_network()), layers(run.network("last"))
    assert first.keys() == after.keys()
    assert run.config.transfer.source == "none"


@pytest.mark.slow
def test_a_backbone_that_learns_is_pruned(tiny, tmp_path):
    source = save_weights(tiny_backbone((32, 32, 3), 1.0), tmp_path / "own.h5")
    run = train(source, tmp_path / "run", [*tiny, "prune.final_sparsity=0.7"], frozen_layers=0)
    pruned = run.network("best")
    kernels = [pruned.get_layer(name).kernel.numpy() for name in ("first", "project", "dense_0", "q")]
    assert sum(np.sum(kernel == 0.0) for kernel in kernels) == pytest.approx(0.7 * sum(map(np.size, kernels)), abs=3)
    assert all(np.all(weight != 0.0) for weight in pruned.get_layer("depthwise").get_weights())


@pytest.mark.exhaustive
@pytest.mark.slow
def test_mobilenet_learns_frozen_and_fine_tuned_and_is_exported_in_float_and_int8(tmp_path):
    torso = ["network.torso=mobilenet_v2", "network.backbone_alpha=0.35"]
    template = backbones.BACKBONES["mobilenet_v2"].make((36, 36, 3), 0.35)
    source = save_weights(template, tmp_path / "own.h5")
    run = train(source, tmp_path / "run", torso, frozen_layers=-1, fine_tuned_layers=2, fine_tune_rate=1.0)
    assert run.config.transfer.frozen_layers == 52
    assert_learned(run, source, {"block_16_project", "Conv_1"})
    model = run.network("best")
    folded = canonical(model)
    assert "kept the layers up to 'block_16_depthwise' as they were" in folded.folds
    shown = run.observations(32)
    agreed = model(shown).numpy().argmax(axis=1) == folded.model(shown.astype(np.float32)).numpy().argmax(axis=1)
    assert agreed.all()
    api.export(run, tmp_path / "bundle", episodes=5, force=True)
    for variant in ("float", "int8"):
        assert Policy(tmp_path / "bundle", variant).act(shown[0]) in range(3)
