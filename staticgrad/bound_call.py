"""Bound calls: what a call of a specialisation takes in Python, written out as one function without loops.

`Specialization.run` is what a call means. Once a specialisation has run that way, the checks and effects of its next
calls are known one by one, and `bound_source` writes them out. The function made of that answers UNBOUND for whatever
is not exactly as it was (another shape, an array that is not contiguous, state whose storage was replaced, a gradient
that somebody holds), having changed nothing, and the call goes the ordinary way. Where state has moved, the same code
is bound anew, to new globals; a thread inside the old ones goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from staticgrad.bound_source import UNBOUND, NotCoveredError, Source
from staticgrad.specialize import Specialization
from staticgrad.tensor import Array
from staticgrad.tree import TreeDef

Call = Callable[[tuple[Any, ...], dict[str, Any]], Any]
_FRUITLESS = 8  # so often in a row a function is bound and never fits: then calls go the ordinary way for good


@dataclass(frozen=True)
class BoundLoop:
    """The parts of a bound call, for running its program many times.

    Attributes:
        enter: takes args and kwargs and makes all checks of a call; a workspace in which everything but the arguments
            and the results stands ready, or UNBOUND. It goes back to the program's `free` in the end.
        leave: carries out what so many calls do to gradients and versions.
        overlaps: whether an array shares memory with state that the program writes.
    """

    enter: Call
    leave: Callable[[int], None]
    overlaps: Callable[[Array], bool]


class BoundCall:
    """The bound call of one specialisation.

    Args:
        specialization: what is called.
        structure, leaves: the arguments of a call of it, as (args, kwargs).
        grad_enabled: the grad mode that it was compiled for.

    Attributes:
        function: to be called with args and kwargs; None while there is none.
        source: its text; empty where the specialisation is not covered.
    """

    def __init__(
        self, specialization: Specialization, structure: TreeDef, leaves: Sequence[Any], grad_enabled: bool
    ) -> None:
        self.function: Call | None = None
        self.source = ""
        self._globals: dict[str, Any] | None = None
        self._specialization = specialization
        self._fruitless = 0
        self._calls_before = 0
        self._arrays: list[Any] = []
        try:
            self._text = Source(specialization, structure, leaves, grad_enabled)
        except NotCoveredError:
            return
        self.source = "\n".join(self._text.lines)
        module = compile(self.source, "<bound call>", "exec")
        codes = (constant for constant in module.co_consts if isinstance(constant, CodeType))
        self._codes = {code.co_name: code for code in codes}

    def renew(self) -> bool:
        """Bind `function` to the storage that state and gradients have now; whether it has changed."""
        if not self.source or self._specialization.live or self._fruitless >= _FRUITLESS:
            return False
        arrays = self._text.arrays()
        if self.function is not None and self._bound_to(arrays):
            return False
        calls = self._specialization.bound_calls
        self._fruitless = 0 if calls > self._calls_before else self._fruitless + 1
        self._calls_before = calls
        before = self.function
        self._bind(arrays)
        return self.function is not before

    def loop(self) -> BoundLoop | None:
        """What many calls in a row take, where one leaves everything as the next needs it."""
        if not self.source or not self._text.repeats:
            return None
        arrays = self._text.arrays()
        if self._globals is None or not self._bound_to(arrays):
            self._bind(arrays)
        if self._globals is None:
            return None
        entry = FunctionType(self._codes["bound_entry"], self._globals)
        return BoundLoop(entry, FunctionType(self._codes["bound_exit"], self._globals), self._globals["overlaps"])

    def _bind(self, arrays: list[Any]) -> None:
        self._arrays = arrays
        self._globals = self._text.globals(arrays)
        if self._globals is None or self._specialization.live or self._fruitless >= _FRUITLESS:
            self.function = None
        else:
            self.function = FunctionType(self._codes["bound_call"], self._globals)

    def _bound_to(self, arrays: list[Any]) -> bool:
        return all(now is then for now, then in zip(arrays, self._arrays, strict=True))


__all__ = ["UNBOUND", "BoundCall", "BoundLoop", "Call"]
