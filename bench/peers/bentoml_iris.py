"""BentoML with adaptive batching over examples/iris/iris.onnx: one worker, one thread in ONNX Runtime, no ZipMap.

    cd bench/peers && BENTOML_DO_NOT_TRACK=True ../../.cache/peers/bin/bentoml serve bentoml_iris:Iris --host 127.0.0.1 --port 5002
    curl localhost:5002/classify -H 'content-type: application/json' -d '{"rows": [[5.9, 3, 5.1, 1.8]]}'

It answers the probabilities only, [[…], …]: what a batchable API returns must be cut into rows.
"""

from pathlib import Path

import bentoml
import numpy as np
import onnx
import onnxruntime


def without_zipmap(path):
    """The bytes of the model, its probabilities as a tensor: the last node, ZipMap, gives way to its input."""
    model = onnx.load(path)
    zipmap = next(node for node in model.graph.node if node.op_type == "ZipMap")
    model.graph.node.remove(zipmap)
    output = next(output for output in model.graph.output if output.name == zipmap.output[0])
    model.graph.output.remove(output)
    model.graph.output.append(onnx.helper.make_tensor_value_info(zipmap.input[0], onnx.TensorProto.FLOAT, [None, 3]))
    return model.SerializeToString(), zipmap.input[0]


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Iris:
    def __init__(self):
        model, self.output = without_zipmap(Path(__file__).parent / "../../examples/iris/iris.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    @bentoml.api(batchable=True, max_batch_size=512, max_latency_ms=1000)
    def classify(self, rows: np.ndarray) -> np.ndarray:
        return self.session.run([self.output], {"X": rows.astype(np.float32)})[0]
