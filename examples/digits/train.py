"""Train a logistic regression on scikit-learn's digits and write digits.onnx and golden.json beside this file.

Run by hand, not by the tests (see ../iris/train.py). golden.json holds what scikit-learn itself answers for 50 rows that
the model was not trained on.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
HELD_BACK = 50

data = load_digits()
X = data.data.astype(np.float32)
model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
model.fit(X[:-HELD_BACK], data.target[:-HELD_BACK])

# Default options; fixed name, sorted opsets: see ../iris/train.py.
exported = to_onnx(model, X[:1], name="digits")
opsets = sorted(exported.opset_import, key=lambda opset: opset.domain)
del exported.opset_import[:]
exported.opset_import.extend(opsets)
onnx_bytes = exported.SerializeToString(deterministic=True)

X = X[-HELD_BACK:]
labels = model.predict(X)
probabilities = model.predict_proba(X.astype(np.float64))

session = onnxruntime.InferenceSession(onnx_bytes, providers=["CPUExecutionProvider"])
onnx_labels, onnx_maps = session.run(None, {"X": X})
onnx_probabilities = np.array([[row[label] for label in model.classes_] for row in onnx_maps])
assert (onnx_labels == labels).all(), "ONNX Runtime's labels differ"
difference = float(np.abs(onnx_probabilities - probabilities).max())
assert difference < 1e-6, f"ONNX Runtime's probabilities differ by {difference}"

(HERE / "digits.onnx").write_bytes(onnx_bytes)


def rows(array):
    """One row per line; whole numbers without a point."""
    numbers = [[int(v) if float(v).is_integer() else float(str(v)) for v in row] for row in array]
    return "[\n" + ",\n".join("    " + json.dumps(row) for row in numbers) + "\n  ]"


(HERE / "golden.json").write_text(
    "{\n"
    f'  "inputs": {rows(X)},\n'
    f'  "labels": {json.dumps(labels.tolist())},\n'
    f'  "probabilities": {rows(probabilities)}\n'
    "}\n"
)
print(f"digits.onnx: {len(onnx_bytes)} bytes; largest difference to scikit-learn {difference:.1e}")
print(f"accuracy on the rows held back {float((labels == data.target[-HELD_BACK:]).mean()):.3f}")
