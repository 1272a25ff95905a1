"""Train a random forest on scikit-learn's iris data and write iris.onnx and golden.json beside this file.

Run by hand, not by the tests:

    python3 -m venv .venv && .venv/bin/pip install -r examples/requirements-train.txt
    .venv/bin/python examples/iris/train.py

golden.json holds what scikit-learn itself answers for all 150 rows; bentoctl's tests compare with it.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

HERE = Path(__file__).parent

data = load_iris()
X = data.data.astype(np.float32)
model = RandomForestClassifier(n_estimators=30, random_state=7).fit(X, data.target)

# Default options: the graph ends in ZipMap, as nearly every scikit-learn model met in the wild does. The fixed name (by default
# a random UUID) and the sorted opsets only keep the bytes the same from run to run.
exported = to_onnx(model, X[:1], name="iris")
opsets = sorted(exported.opset_import, key=lambda opset: opset.domain)
del exported.opset_import[:]
exported.opset_import.extend(opsets)
onnx_bytes = exported.SerializeToString(deterministic=True)

labels = model.predict(X)
probabilities = model.predict_proba(X)

session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
onnx_labels, onnx_maps = session.run(None, {"X": X})
onnx_probabilities = np.array([[row[label] for label in model.classes_] for row in onnx_maps])
assert (onnx_labels == labels).all(), "ONNX Runtime's labels differ"
difference = float(np.abs(onnx_probabilities - probabilities).max())
assert difference < 1e-6, f"ONNX Runtime's probabilities differ by {difference}"

(HERE / "iris.onnx").write_bytes(onnx_bytes)


def rows(array):
    """One row per line; each float32 with the fewest digits that read back as the same float32."""
    return "[\n" + ",\n".join("    " + json.dumps([float(str(v)) for v in row]) for row in array) + "\n  ]"


(HERE / "golden.json").write_text(
    "{\n"
    f'  "inputs": {rows(X)},\n'
    f'  "labels": {json.dumps(labels.tolist())},\n'
    f'  "probabilities": {rows(probabilities)}\n'
    "}\n"
)
print(f"iris.onnx: {len(onnx_bytes)} bytes; largest difference to scikit-learn {difference:.1e}")
print(f"accuracy on the training rows {float((labels == data.target).mean()):.3f}")
