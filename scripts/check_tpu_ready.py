"""What stands between a TPU and training: compiles `learn` of every preset by XLA, and names what a TPU would refuse.

    python scripts/check_tpu_ready.py [--presets dqn,rainbow]

Compiled on the CPU, which has not a TPU's own limits: what passes may still fail there, what is refused will.
"""

import argparse
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the checkout, installed or not
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from rlplatform import devices
from rlplatform.config import Config
from rlplatform.envs import Spec
from rlplatform.presets import resolve, shipped
from rlplatform.training import Learner

# Of each kind of network one: dense on numbers, convolutions on frames.
SPECS = {"CartPole-v1": Spec((4,), "float32", 2), "ALE/Pong-v5": Spec((84, 84), "uint8", 6)}
HOST = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "Print", "PrintV2", "ReadFile", "WriteFile", "Timestamp"}
DYNAMIC = {"Where", "Unique", "UniqueV2", "UniqueWithCounts", "ListDiff", "DynamicPartition", "NonMaxSuppressionV3"}
DTYPES = {kind.as_datatype_enum for kind in (tf.string, tf.float64, tf.complex128)}


def main() -> int:
    """See the module's docstring. Returns 1 where anything is refused."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", metavar="LIST", help="names with commas between; all by default")
    args = parser.parse_args()
    failed = 0
    for preset in args.presets.split(",") if args.presets else shipped():
        for env_id, spec in SPECS.items():
            reasons = sorted(set(refused_in_preset(preset, env_id, spec)))
            print(f"{preset:12} {env_id:12} {'; '.join(reasons) or 'ready'}", flush=True)
            failed += bool(reasons)
    return 1 if failed else 0


def refused_in_preset(preset: str, env_id: str, spec: Spec) -> Iterator[str]:
    """What a TPU would refuse in `learn`; a small replay and few updates change nothing of it."""
    config = small(resolve(env_id, preset))
    learner = Learner(config, spec, devices.strategy("cpu"))
    yield from refused(learner.learn, *learner.signature)


def small(config: Config) -> Config:
    """The run with as little memory as it can have."""
    changes: dict[str, Any] = {"training": {"gradient_steps": min(4, config.training.gradient_steps)}}
    if config.agent.algorithm == "dqn":
        rows = config.rows_before_sampling + 2 * config.block_steps
        changes["replay"] = {"capacity": config.environment.num_envs * rows}
    return config.replace(**changes)


def refused(function: Callable[..., Any], *signature: Any) -> Iterator[str]:
    """What a TPU would refuse in a function: calls of the host, shapes that depend on values, types that it lacks.

    Args:
        function: of tensors, or structures of them.
        signature: their specs.
    """
    flat = [tf.TensorSpec(spec.shape, spec.dtype) for spec in tf.nest.flatten(signature)]

    def program(*tensors: tf.Tensor) -> Any:
        return function(*tf.nest.pack_sequence_as(signature, tensors))

    compiled = tf.function(program, jit_compile=True, autograph=False)
    graph = compiled.get_concrete_function(*flat).graph
    found = list(refused_operations(graph))
    yield from found
    if found:
        return
    try:
        hlo = compiled.experimental_get_compiler_ir(*[tf.zeros(spec.shape, spec.dtype) for spec in flat])(stage="hlo")
    except (tf.errors.OpError, ValueError) as error:
        yield f"XLA: {str(error).splitlines()[0]}"
        return
    if re.search(r"\[[^\]]*<=", hlo):
        yield "a shape that depends on values"
    yield from (f"{name} in the program" for name in ("f64[", "c128[", "infeed(", "outfeed(") if name in hlo)


def refused_operations(graph: Any) -> Iterator[str]:
    """The same, among the operations of a graph and of all functions that it calls."""
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    for node in nodes:
        if node.op in HOST:
            yield f"{node.op} calls the host"
        elif node.op in DYNAMIC:
            yield f"{node.op} has a shape that depends on values"
        for value in node.attr.values():
            types = [value.type, *value.list.type]
            yield from (f"{node.op} is of {tf.as_dtype(kind).name}" for kind in types if kind in DTYPES)


if __name__ == "__main__":
    sys.exit(main())
