"""The same VGG16 as others run it: TensorFlow, Keras, and by hand ONNX Runtime and OpenVINO.

Each peer turns uint8 RGB [n, INPUT_SIZE, INPUT_SIZE, 3] into float32 [n, 512]. Bare means: nothing
but the library's own call, fed from an ONNX graph.
"""

import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime  # type: ignore[import-untyped,unused-ignore]
from onnx import TensorProto, helper, numpy_helper

from benchmarks.measure import INPUT_SIZE, ready_process
from image_search.engines import MEAN_RGB, Forward, tensorflow
from image_search.values import BLOCKS, PLAIN_POOLING, Embeddings, Pixels
from image_search.weights import Convolution

OPSET = 17
IR_VERSION = 10

ONNX_RUNTIME_PROCESS = f"""
import sys
import numpy
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {{"pixels": numpy.zeros((1, {INPUT_SIZE}, {INPUT_SIZE}, 3), numpy.uint8)}})
"""


def float32_peers(convolutions: Sequence[Convolution]) -> dict[str, Forward]:
    """The peers by name. Call it after an Embedder was made, which stops OpenVINO's telemetry."""
    model = onnx_model(convolutions)
    return {
        "TensorFlow": tensorflow.compile_forward(convolutions, INPUT_SIZE, [PLAIN_POOLING]),
        "ONNX Runtime": bare_onnx_runtime(model),
        "OpenVINO": bare_openvino(model),
    }


def bare_onnx_runtime(model: bytes) -> Forward:
    """ONNX Runtime with its defaults."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

    def forward(pixels: Pixels) -> Embeddings:
        return np.asarray(session.run(None, {"pixels": pixels})[0])

    return forward


def bare_openvino(model: bytes) -> Forward:
    """OpenVINO in float32, tuned for latency."""
    import openvino as ov

    core = ov.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(core.read_model(model), "CPU", settings).create_infer_request()

    def forward(pixels: Pixels) -> Embeddings:
        return np.array(request.infer([pixels])[0])

    return forward


def keras_predict(convolutions: Sequence[Convolution]) -> Forward:
    """`model.predict`, as in most tutorials."""
    keras = tensorflow.import_keras()
    model = keras.applications.VGG16(
        weights=None, include_top=False, pooling="avg", input_shape=(INPUT_SIZE, INPUT_SIZE, 3)
    )
    model.set_weights([array for convolution in convolutions for array in convolution])

    def forward(pixels: Pixels) -> Embeddings:
        batch = keras.applications.vgg16.preprocess_input(pixels.astype(np.float32))
        return np.asarray(model.predict(batch, verbose=0))

    return forward


def onnx_model(convolutions: Sequence[Convolution]) -> bytes:
    """VGG16 without its classifier as an ONNX file: `pixels` in, `embeddings` out."""
    mean = np.array(MEAN_RGB, np.float32).reshape(1, 3, 1, 1)
    constants = [numpy_helper.from_array(mean, "mean")]
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["channels_first"], perm=[0, 3, 1, 2]),
        helper.make_node("Sub", ["channels_first", "mean"], ["input"]),
    ]
    output = "input"
    numbers = itertools.count()
    for block, (count, _) in enumerate(BLOCKS):
        for number in itertools.islice(numbers, count):
            kernel, bias = convolutions[number]
            if number == 0:  # its channels are blue, green, red
                kernel = kernel[:, :, ::-1]
            kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
            inputs = [output, f"kernel_{number}", f"bias_{number}"]
            constants += [
                numpy_helper.from_array(kernel, inputs[1]),
                numpy_helper.from_array(bias, inputs[2]),
            ]
            output = f"relu_{number}"
            nodes += [
                helper.make_node("Conv", inputs, [f"conv_{number}"], pads=[1, 1, 1, 1]),
                helper.make_node("Relu", [f"conv_{number}"], [output]),
            ]
        pooled = f"pool_{block}"
        nodes.append(
            helper.make_node("MaxPool", [output], [pooled], kernel_shape=[2, 2], strides=[2, 2])
        )
        output = pooled
    nodes += [
        helper.make_node("GlobalAveragePool", [output], ["average"]),
        helper.make_node("Flatten", ["average"], ["embeddings"]),
    ]
    shape: list[str | int | None] = ["n", INPUT_SIZE, INPUT_SIZE, 3]
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, shape)],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 512])],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def onnx_runtime_process(convolutions: Sequence[Convolution]) -> tuple[float, float]:
    """Seconds from the start to the first answer, and MiB resident, of a bare ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vgg16.onnx"
        path.write_bytes(onnx_model(convolutions))
        return ready_process(ONNX_RUNTIME_PROCESS, str(path))[:2]
