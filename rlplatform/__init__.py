"""Train a Q-network on any Gymnasium environment, shrink it, prove that it still plays, and ship it.

The functions below are those of `rlplatform.api`, which is imported at their first use (its `export` is found there
alone, since `rlplatform.export` is the room): `import rlplatform` alone
loads no TensorFlow, so that `rlplatform.runtime` works where only numpy and ai-edge-litert are.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rlplatform.errors import RunError, UserError

if TYPE_CHECKING:
    from rlplatform.api import compress, evaluate, load, train, verify

__all__ = [
    "RunError",
    "UserError",
    "__version__",
    "compress",
    "evaluate",
    "load",
    "train",
    "verify",
]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rlplatform.api"), name)
    raise AttributeError(f"module 'rlplatform' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
