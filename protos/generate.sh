#!/bin/sh
# Regenerates ostraka/v1 from protos/ostraka/v1. `sh protos/generate.sh DIR` writes elsewhere,
# which is how the check compares what is committed with what the contract says.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:-$root}
python=${PYTHON:-$root/.venv/bin/python}
PATH="$(dirname "$python"):$PATH"
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I "$root/protos" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="$out" --mypy_grpc_out="$out" \
  "$root"/protos/ostraka/v1/*.proto
