"""The processes of the speed benchmark: their environment, cores and caches, and talking to them."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
PATIENCE = {"cpu": 900.0, "cuda": 120.0}  # seconds that one command may take

_COUNTS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "STATICGRAD_NUM_THREADS",
    "NPROC",  # XLA
)


class EngineError(RuntimeError):
    """An engine could not do what it was told; `kind` is the class of its error, `missing` a module that it lacks."""

    def __init__(self, message: str, missing: str | None = None, kind: str = "") -> None:
        super().__init__(message)
        self.missing = missing
        self.kind = kind


def usable_cores() -> list[int]:
    """The cores that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def busy_seconds() -> float:
    """What all processes have used of all cores since the start of the system; 0 where it does not say."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, interrupts, soft, stolen = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")
    return 0.0


def environment(threads: int, caches: Path | None, device: str = "cpu") -> dict[str, str]:
    """Of a child: as many threads for every library, and caches in a folder of its own; None turns off JAX's."""
    variables = {**os.environ, **dict.fromkeys(_COUNTS, str(threads)), "JAX_PLATFORMS": device}
    if device == "cpu":
        variables["XLA_FLAGS"] = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'}"
    else:
        variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the GPU's memory is shared by all engines of a row
        variables.pop("NVIDIA_TF32_OVERRIDE", None)  # rows say how exact their products are
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages are compiled; so must a checkout be
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    if caches is None:
        return variables
    return variables | {
        "STATICGRAD_CACHE_DIR": str(caches / "staticgrad"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "torch"),
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TRITON_CACHE_DIR": str(caches / "triton"),
    }


def jax_cache(caches: Path) -> dict[str, str]:
    """Variables that have JAX keep every program, however small and quick to compile."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(caches / "jax"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }


class Child:
    """A worker process, pinned before it starts to the first `threads` of the usable cores: for a GPU to none.

    Use it as a context manager, or `close` it: it ends when its standard input does.
    """

    def __init__(self, python: str, threads: int, variables: Mapping[str, str], log: Path, device: str = "cpu") -> None:
        self._log = log
        self._patience = PATIENCE[device]
        self._errors: IO[bytes] = log.open("wb")
        cores = usable_cores()[:threads]
        pins = device == "cpu" and hasattr(os, "sched_setaffinity")
        pin = (lambda: os.sched_setaffinity(0, cores)) if pins else None
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=ROOT,
            env=dict(variables),
            text=True,
            preexec_fn=pin,
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, do: str, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer.

        Raises:
            EngineError: the command failed, the process ended, or it took longer than PATIENCE.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        guard = threading.Timer(self._patience, self._process.kill)
        guard.start()
        try:
            self._process.stdin.write(json.dumps({"do": do, **command}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            guard.cancel()
        if not line:
            raise EngineError(
                f"the process ended at {do!r} (after {self._patience:.0f} s it is killed): {self._last_words()}"
            )
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise EngineError(found["error"], found["missing"], found["kind"])
        return found

    def processor_seconds(self) -> float:
        """What all threads of the process have used so far; 0 where the system does not say."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # user and system
        return 0.0

    def close(self) -> None:
        """End the process."""
        if self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"
