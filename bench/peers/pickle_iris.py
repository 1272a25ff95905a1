"""Pickle the random forest of examples/iris (the same data, seed and size as in its train.py). Usage: pickle_iris.py OUT"""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier

data = load_iris()
X = data.data.astype(np.float32)
model = RandomForestClassifier(n_estimators=30, random_state=7).fit(X, data.target)

golden = json.loads((Path(__file__).parent / "../../examples/iris/golden.json").read_text())
assert np.abs(model.predict_proba(X) - golden["probabilities"]).max() < 1e-12, "not the model of examples/iris"

Path(sys.argv[1]).write_bytes(pickle.dumps(model))
