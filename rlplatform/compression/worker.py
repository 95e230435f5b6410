"""The process that runs TensorFlow's converter, and the one to ONNX: started by `converter`, never imported.

Every `convert()` keeps about 22 MB for good, and the converter writes notes to standard output from C++; both end with
this process, which ends itself after so many folders, or when it has had nothing to do for a while.

A line of standard input is a list of folders, in JSON. A folder holds `jobs.json`, the SavedModels that it names and
`calibration.npy`; each job leaves a file. The answer is a line: a sentence on what went wrong, empty if nothing did.
"""

import json
import os
import pathlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

MOST = 20  # folders
IDLE_SECONDS = 60.0


def main() -> None:
    """Answers lines until there is no more of them."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    import tensorflow  # noqa: F401 - before it is asked for anything

    done = 0
    while done < MOST:
        bored = threading.Timer(IDLE_SECONDS, os._exit, (0,))
        bored.daemon = True
        bored.start()
        line = sys.stdin.readline()
        bored.cancel()
        if not line:
            break
        folders = [pathlib.Path(name) for name in json.loads(line)]
        print(json.dumps(next(filter(None, map(work, folders)), "")), file=answers, flush=True)
        done += len(folders)


def work(folder: pathlib.Path) -> str:
    """Does the jobs of a folder; what went wrong, in a sentence, if something did."""
    try:
        import numpy as np
        import tensorflow as tf

        calibration = np.load(folder / "calibration.npy", mmap_mode="r")
        for job in json.loads((folder / "jobs.json").read_text()):
            made = make(tf, folder, job, calibration)
            (folder / job["output"]).write_bytes(made)
    except Exception as error:  # Whatever the converter raises, the parent tells it.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return lines[-1] if lines else type(error).__name__
    return ""


def make(tf: Any, folder: pathlib.Path, job: dict[str, Any], calibration: Any) -> bytes:
    """What one job asks for."""
    if job["mode"] == "dynamic_all":
        return quantise_all((folder / "float.tflite").read_bytes(), job["per_channel"])
    saved_model = folder / job["saved_model"]
    return to_onnx(tf, saved_model) if job["mode"] == "onnx" else convert(tf, saved_model, job, calibration)


def convert(tf: Any, saved_model: pathlib.Path, job: dict[str, Any], calibration: Any) -> bytes:
    """One file.

    Args:
        tf: TensorFlow.
        saved_model: its signature `act` takes `observation`.
        job: `mode` is float, dynamic, static or int16x8; the last two have `input` and `output_type` (TensorFlow
            dtypes' names), `per_channel`, whether each unit of a Dense has a scale of its own, and `masked_actions`,
            how many actions the `action_mask` beside the observation has, if the signature takes one.
        calibration: `[N, O...]` float32 observations, for static and int16x8.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["act"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    if job["mode"] != "float":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if job["mode"] in ("static", "int16x8"):
        masked_actions = job.get("masked_actions", 0)
        mask = {"action_mask": tf.ones((1, masked_actions), tf.bool)} if masked_actions else {}

        def observations() -> Iterator[dict[str, Any]]:
            for observation in calibration:
                yield {"observation": observation[None], **mask}

        converter.representative_dataset = observations
        kinds = tf.lite.OpsSet
        if job["mode"] == "static":
            converter.target_spec.supported_ops = [kinds.TFLITE_BUILTINS_INT8]
        else:  # What chooses the action, where that is asked for, has no form in int16.
            in_float = [kinds.TFLITE_BUILTINS] if job["output_type"] == "float32" else []
            int16 = kinds.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
            converter.target_spec.supported_ops = [int16, *in_float]
        converter.inference_input_type = getattr(tf, job["input"])
        converter.inference_output_type = getattr(tf, job["output_type"])
        converter._experimental_disable_per_channel_quantization_for_dense_layers = not job["per_channel"]
    return converter.convert()  # type: ignore[no-any-return]


def to_onnx(tf: Any, saved_model: pathlib.Path) -> bytes:
    """The ONNX twin of a float32 file: the inputs and outputs of the signature `act` by their names and dtypes."""
    from tf2onnx.convert import from_function  # Here: the extra `onnx` may be missing.

    module = tf.saved_model.load(str(saved_model))
    _, inputs = module.signatures["act"].structured_input_signature
    taken = [inputs[name] for name in ("observation", "state", "action_mask") if name in inputs]
    made, _ = from_function(module.act, input_signature=taken)
    return made.SerializeToString(deterministic=True)  # type: ignore[no-any-return]


def quantise_all(float_file: bytes, per_channel: bool) -> bytes:
    """Dynamic int8 by ai-edge-quantizer, which leaves no layer out for being small.

    Args:
        float_file: what `convert` has made as float.
        per_channel: whether each unit of a layer has a scale of its own.
    """
    from ai_edge_quantizer import qtyping, quantizer

    granularity = qtyping.QuantGranularity.CHANNELWISE if per_channel else qtyping.QuantGranularity.TENSORWISE
    edge = quantizer.Quantizer(bytearray(float_file))
    edge.add_dynamic_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=8, granularity=granularity)
    return bytes(edge.quantize().quantized_model)


if __name__ == "__main__":
    main()
