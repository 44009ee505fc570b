"""Functions of compiled code whose LLVM instructions are written by hand, known to the compilers of every device.

`numba.extending.intrinsic` enters its functions into Numba's own compiler, which takes 0.2 s to load all that it knows
of arrays, lists and strings. The functions here are known to any compiler, ours of plain loops too; what is entered
here a device with a compiler of its own enters there as well (`entered`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from numba import types
from numba.extending import lower_builtin, register_jitable, type_callable


class Entered(NamedTuple):
    """One function: how its result's type follows from its arguments' types, and what writes its instructions.

    Attributes:
        typer: `typer(context)` gives a function of the arguments' types.
        lowerings: tuples of argument types, each to be lowered by `lower(context, builder, signature, arguments)`.
    """

    called: Callable[..., Any]
    typer: Callable[[Any], Any]
    lowerings: tuple[tuple[Any, ...], ...]
    lower: Callable[..., Any]


entered: list[Entered] = []
jitted: list[Callable[..., Any]] = []  # functions that Numba compiles from their Python text


def enter(function: Entered) -> None:
    """Make a function known to Numba, and to whoever reads `entered`."""
    entered.append(function)
    type_callable(function.called)(function.typer)
    for kinds in function.lowerings:
        lower_builtin(function.called, *kinds)(function.lower)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make a function callable from compiled code; the protocol is that of `numba.extending.intrinsic`.

    Args: `function(context, *types)` answers with a signature and a function that writes the instructions,
    `codegen(context, builder, signature, arguments)`, or with None where it does not take these types.
    """
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())[1:]

    @wraps(function)
    def called(*arguments: Any) -> Any:
        raise NotImplementedError(f"{function.__name__}: callable from compiled code only")

    def typer(*kinds: Any) -> Any:
        found = function(None, *kinds)
        return None if found is None else found[0].return_type  # a signature is of the compiler that asks

    typer.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def lowering(context: Any, builder: Any, found: Any, arguments: Any) -> Any:
        return function(None, *found.args)[1](context, builder, found, arguments)

    enter(Entered(called, lambda context: typer, ((types.Any,) * len(parameters),), lowering))
    return called


def jittable(function: Callable[..., Any]) -> Any:
    """Have Numba compile a function from its text, with its loops and branches; integers never trap."""
    jitted.append(function)
    return register_jitable(error_model="numpy")(function)
