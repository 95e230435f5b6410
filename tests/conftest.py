"""What all tests share: two logical devices, repeatable examples."""

import os
import pathlib
import sys
from collections.abc import Iterator

import hypothesis
import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when TensorFlow is loaded: no start-up notes

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Splits the CPU into two devices, where a collected test has loaded TensorFlow: a start cannot be undone."""
    if "tensorflow" not in sys.modules:
        return
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture
def forgets_imports(tmp_path: pathlib.Path) -> Iterator[None]:
    """What a test imports from its folder is forgotten afterwards: another test may have a module of the same name."""
    path = list(sys.path)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, one after the other."""
    from quick import run_here

    from rlplatform import workers

    monkeypatch.setattr(workers, "run", run_here)
