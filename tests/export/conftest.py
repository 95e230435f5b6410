"""What tests of bundles share: one that is small and good, for a microcontroller, and copies of it to break."""

import shutil

import pytest
from known import Signs, signs_run

from rlplatform.compression import onnx_file
from rlplatform.export import export


@pytest.fixture(scope="session")
def signs(tmp_path_factory):
    """The bundle of `known.signs_run`, with ONNX where that can be written, and its verification."""
    folder = tmp_path_factory.mktemp("signs")
    formats = ["tflite", "saved_model"] + ["onnx"] * (onnx_file.missing_converter() is None)
    verification = export(signs_run(folder / "run"), folder / "bundle", "mcu", formats, episodes=4, factory=Signs)
    return folder / "bundle", verification


@pytest.fixture
def good(signs, tmp_path):
    """A copy of it that a test may break."""
    return shutil.copytree(signs[0], tmp_path / "bundle")
