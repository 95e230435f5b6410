"""A bundle's C code, compiled on this machine and called: does it compute what the files compute?"""

import ctypes
import pathlib
import shutil
import subprocess
import tempfile
from typing import Any

import numpy as np

from rlplatform.errors import RunError

Array = np.ndarray[Any, Any]

SOURCE = "policy.c"
WHOLE = ("int8", "int16")
COMPILERS = ("cc", "gcc", "clang")
WARNINGS = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
FLAGS = ("-std=c99", "-ffreestanding", "-O2", "-shared", "-fPIC", *WARNINGS)


def compiler() -> str | None:
    """The C compiler of this machine, if there is one."""
    return next((found for name in COMPILERS if (found := shutil.which(name)) is not None), None)


def missing() -> str | None:
    """What to install so that C can be compiled; None where nothing is missing."""
    return None if compiler() else f"there is no C compiler on this machine ({', '.join(COMPILERS)})"


class CompiledPolicy:
    """`policy.c` as a library of this process.

    Args:
        folder: where `policy.c` and `policy.h` lie.
        num_actions: A.

    Attributes:
        whole: int8 or int16, what the part computes in that is not float; None where there is no such part.

    Raises:
        RunError: it does not compile without a warning.
    """

    def __init__(self, folder: pathlib.Path, num_actions: int) -> None:
        found = compiler()
        if found is None:
            raise RunError("there is no C compiler on this machine")
        self._num_actions = num_actions
        with tempfile.TemporaryDirectory(prefix="rlplatform-") as name:
            library = pathlib.Path(name, "policy.so")
            command = [found, *FLAGS, "-I", str(folder), "-o", str(library), str(folder / SOURCE)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if done.returncode != 0:
                lines = done.stderr.strip().splitlines() or ["no reason given"]
                raise RunError(f"{SOURCE} does not compile: {lines[0]}")
            self._library = ctypes.CDLL(str(library))  # stays loaded when its file is gone

        parts = [kind for kind in WHOLE if hasattr(self._library, f"policy_act_{kind}")]
        self.whole = parts[0] if parts else None

    def q_values(self, observation: Array) -> Array:
        """`[A]` float32, of the float part."""
        given = np.ascontiguousarray(observation, np.float32)
        q = np.zeros(self._num_actions, np.float32)
        self._library.policy_act(_pointer(given), None, _pointer(q))
        return q

    def q_whole(self, observation: Array) -> Array:
        """`[A]` int8 or int16, of the whole-number part, which quantises the observation itself."""
        assert self.whole is not None
        given, kind = np.ascontiguousarray(observation, np.float32), np.dtype(self.whole)
        entered, q = np.zeros(given.size, kind), np.zeros(self._num_actions, kind)
        self._library.policy_quantise(_pointer(given), _pointer(entered))
        getattr(self._library, f"policy_act_{kind.name}")(_pointer(entered), None, _pointer(q))
        return q


def _pointer(array: Array) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)
