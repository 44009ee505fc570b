"""Functions of compiled code whose LLVM instructions are written by hand.

`numba.extending.intrinsic` enters its functions into Numba's own compiler, which takes 0.2 s to load all that it knows
of arrays, lists and strings. The functions here are known to any compiler, ours of plain loops too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from numba import types
from numba.extending import lower_builtin, type_callable


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
        return None if found is None else found[0]

    typer.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]

    def lowering(context: Any, builder: Any, found: Any, arguments: Any) -> Any:
        return function(None, *found.args)[1](context, builder, found, arguments)

    type_callable(called)(lambda context: typer)
    lower_builtin(called, *[types.Any] * len(parameters))(lowering)
    return called
