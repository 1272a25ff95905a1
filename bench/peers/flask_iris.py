"""What most people write first: Flask around a pickled scikit-learn model.

    cd bench/peers && ../../.cache/peers/bin/gunicorn --workers 1 --bind 127.0.0.1:5001 flask_iris:app
    curl localhost:5001/classify -H 'content-type: application/json' -d '[[5.9, 3, 5.1, 1.8]]'
"""

import pickle
from pathlib import Path

import numpy as np
from flask import Flask, jsonify, request

SPECIES = ["setosa", "versicolor", "virginica"]
model = pickle.loads((Path(__file__).parent / "../../.cache/peers/iris.pkl").read_bytes())
app = Flask(__name__)


@app.post("/classify")
def classify():
    rows = np.asarray(request.get_json(), dtype=np.float32)
    probabilities = model.predict_proba(rows)
    labels = [SPECIES[index] for index in probabilities.argmax(axis=1)]
    return jsonify(labels=labels, probabilities=probabilities.tolist())


@app.get("/readyz")
def readyz():
    return "ok"
