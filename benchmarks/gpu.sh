#!/usr/bin/env bash
# The tests for GPUs and then the benchmarks on one, from a bare checkout: nothing is installed and no network is needed.
#
#   benchmarks/gpu.sh                    results go to benchmarks/results
#   OUT=folder benchmarks/gpu.sh         ... or there
#   PYTHON=python3.12 benchmarks/gpu.sh --rows mlp_tiny,mlp_wide     further words are options of the benchmarks
#
# It takes less than ten minutes: each part has a limit of its own in seconds (TEST_SECONDS, BENCHMARK_SECONDS), and one
# that fails or is stopped does not keep the others from running. The exit code is 1 if a part failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
TEST_SECONDS=${TEST_SECONDS:-190}
BENCHMARK_SECONDS=${BENCHMARK_SECONDS:-350}
mkdir -p "$OUT" || exit 1

# staticgrad is imported from the checkout, which comes before any other that is installed.
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=0

# numba-cuda has its compiler from NVIDIA's wheel, or else from the CUDA toolkit that this variable names.
if [ -z "${CUDA_HOME:-}${CUDA_PATH:-}" ] && nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc) &&
    ! "$PYTHON" -c 'import importlib.metadata; importlib.metadata.version("nvidia-nvvm")' 2>/dev/null; then
    CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
    export CUDA_HOME
    echo "CUDA_HOME=$CUDA_HOME"
fi

# part NAME SECONDS LOG COMMAND...: runs the command with its output also in the log, and says how it ended.
part() {
    local name=$1 seconds=$2 log=$OUT/$3 begin=$SECONDS
    shift 3
    echo "== $name (at most $seconds s)"
    timeout --kill-after=10 "$seconds" "$@" 2>&1 | tee "$log"
    local status=${PIPESTATUS[0]}
    case $status in
    0) echo "== $name: done in $((SECONDS - begin)) s" ;;
    124 | 137) echo "== $name: stopped after $seconds s" | tee -a "$log" ;;
    *) echo "== $name: ended with $status after $((SECONDS - begin)) s" | tee -a "$log" ;;
    esac
    [ "$status" -eq 0 ] || failed=1
}

# Whatever else is missing here is found out by what needs it.
part "packages" 20 gpu_packages.txt "$PYTHON" -c '
import importlib.metadata, importlib.util, platform, sys

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"

needed = {"numpy": "numpy", "numba": "numba", "llvmlite": "llvmlite", "numba_cuda": "numba-cuda", "pytest": "pytest"}
peers = {"torch": "torch", "jax": "jax"}
print("python", platform.python_version(), sys.executable)
for module, name in {**needed, **peers, "scipy": "scipy", "safetensors": "safetensors"}.items():
    found = importlib.util.find_spec(module)
    print(name, version(name) if found else "is not installed")
missing = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
if missing:
    sys.exit("missing: " + ", ".join(missing))
try:
    import staticgrad
except ModuleNotFoundError as error:
    sys.exit(f"staticgrad cannot be imported: {error.name} is not installed")
print("staticgrad", staticgrad.__file__)
'
# A real GPU rather than Numba's simulator, which tests/conftest.py asks for otherwise. Warnings of other versions of the
# packages than those the tests were written with are no failures.
part "tests" "$TEST_SECONDS" gpu_tests.txt env NUMBA_ENABLE_CUDASIM=0 \
    "$PYTHON" -m pytest tests/cuda -q -W default -p no:cacheprovider -o faulthandler_timeout=$((TEST_SECONDS * 2 / 3))
part "benchmarks" "$BENCHMARK_SECONDS" gpu_benchmarks.txt \
    "$PYTHON" -m benchmarks --device cuda --seconds $((BENCHMARK_SECONDS * 9 / 10)) --out "$OUT/cuda.json" "$@"

exit "$failed"
