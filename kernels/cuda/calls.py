"""Calls of NVIDIA's driver, and what its error codes mean to a user."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from staticgrad.graph.errors import DeviceError, OutOfMemoryError
from staticgrad.kernels.cuda import toolkit

OUT_OF_MEMORY = 2
NOT_INITIALIZED = 3
FATAL = frozenset({
    226, 700, 702, 710, 714, 715, 716, 717, 718, 719, 721, 810, 911,  # by the manual the process must be started anew
    214, 220,  # memory or a link of the GPU has failed
    709,  # another library has destroyed the context
})  # fmt: skip
"""The codes after which everything in the GPU's memory is lost, and every later call fails too."""

_RESET = "sg.cuda.reset() begins anew with it, and where the driver refuses that, a new process does"
_NEW_PROCESS = "it can be used again in a new process"


class Calls:
    """Calls the driver's functions for one GPU by name, as in `call("cuStreamCreate", 1)`.

    Attributes:
        driver: the module `cuda.bindings.driver`.
        failure: why nothing may be called any more; empty as long as all is well.
        opened: whether the GPU has ever been ready for use.
    """

    def __init__(self, driver: Any, device: str, reclaim: Callable[[], None]) -> None:
        """`reclaim` gives back what nobody uses; it is called when a call has found no memory."""
        self.driver = driver
        self.failure = ""
        self.opened = False
        self._device = device
        self._reclaim = reclaim
        self._process = os.getpid()
        self._functions: dict[str, Callable[..., Any]] = {}

    def __call__(self, name: str, *arguments: Any) -> Any:
        """The results of a function: None, one, or several as a tuple.

        Raises:
            DeviceError: the driver reports an error, now or of work queued earlier, or does not have the function.
            OutOfMemoryError: the GPU has no memory for it.
        """
        if self.failure:
            raise DeviceError(self.failure)
        function = self._functions.get(name)
        if function is None:
            function = self._functions[name] = getattr(self.driver, name)
        try:
            code, *results = function(*arguments)
        except (RuntimeError, ValueError) as error:  # it has no such function, or a code that the bindings do not know
            raise DeviceError(
                f"cuda: {name} failed on {self._device}: {error}; the driver does not fit {toolkit.versions()}: "
                "install the newest of both"
            ) from error
        if code:
            return self.after(code, name, *arguments)
        return results[0] if len(results) == 1 else results or None

    def after(self, code: Any, name: str, *arguments: Any) -> Any:
        """What a call gives that was answered with a code other than 0: once more where memory was lacking.

        Raises:
            DeviceError, OutOfMemoryError: as a call does.
        """
        results: Sequence[Any] = ()
        if code == OUT_OF_MEMORY and not self.failure:
            self._reclaim()
            code, *results = getattr(self.driver, name)(*arguments)
        if code:
            raise self.error(name, code)
        return results[0] if len(results) == 1 else results or None

    def error(self, name: str, code: Any) -> DeviceError | OutOfMemoryError:
        """What to raise when the function `name` has answered with a code that is not 0."""
        said = self._text(code)
        if code in FATAL:
            return self._fatal(name, said)
        if code == OUT_OF_MEMORY:
            return OutOfMemoryError(
                f"cuda: {name} found no memory on {self._device}: {said}; free tensors that are no longer used"
            )
        if code == NOT_INITIALIZED and os.getpid() != self._process:
            return DeviceError(
                f"cuda: {self._device} was opened by the process that this one was forked from, and cannot be used "
                "here; start processes with multiprocessing's 'spawn'"
            )
        if name == "cuModuleLoadData":
            version = self.driver.cuDriverGetVersion()[1]
            return DeviceError(
                f"cuda: the driver (of CUDA {version // 1000}.{version % 1000 // 10}) does not load this code: {said}; "
                f"it was made by {toolkit.versions()}: update the driver, or install packages of its CUDA version"
            )
        return DeviceError(f"cuda: {name} failed on {self._device}: {said}")

    def _fatal(self, name: str, said: str) -> DeviceError:
        lost = ", and what was in its memory is lost" if self.opened else ""
        way_out = _RESET if self.opened else _NEW_PROCESS
        self.failure = f"cuda: {self._device} has failed with {said} in {name}{lost}; the CPU still works; {way_out}"
        return DeviceError(self.failure)

    def _text(self, code: Any) -> str:
        name, text = self.driver.cuGetErrorName(code)[1], self.driver.cuGetErrorString(code)[1]
        return f"{name.decode()} ({text.decode()})" if name and text else f"error {int(code)}"
