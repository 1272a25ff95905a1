#!/bin/sh
# Make .cache/peers: a Python environment with the peers that the benchmarks compare with, and their model.
# Usage: bench/peers/install.sh [PYTHON]     (Python 3.11; some 500 MB; nothing to do when it is there already)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv="$here/../../.cache/peers"
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
  rm -rf "$venv"
  "${1:-python3}" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r "$here/requirements.txt"
  cp "$here/requirements.txt" "$venv/installed.txt"
fi
"$venv/bin/python" "$here/pickle_iris.py" "$venv/iris.pkl"
