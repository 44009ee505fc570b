"""From a Python kernel to LLVM IR through Numba: the one file that reaches behind Numba's public interface.

Numba's public way, `cfunc(...).inspect_llvm()`, optimises twice and makes machine code that nobody calls, and cannot
say that pointers do not overlap, so that LLVM gives up vectorising loops over many of them. What is used instead, and
what to do when a new Numba breaks it:

- `numba.core.compiler.compile_extra`, `Flags`: compile one function with flags, `noalias` among them.
- `CompilerBase`, `PassManager` and the pass classes: documented under "Customizing the compiler". The kernels are
  plain loops, so nine passes do; the full pipeline takes a quarter longer. If a pass moves, use
  `DefaultPassBuilder.define_nopython_pipeline` instead.
- `registry.cpu_target`, `codegen.CodeLibrary`: the library given to the compiler is where the lowered module arrives;
  ours keeps its text and leaves LLVM alone. If its interface changes, let Numba make its own library with
  `flags.no_compile` and read `_final_module` and `_linking_libraries` from it.
- `typing.Context`, `cpu.CPUContext`: Numba's knowledge of types and of how to lower them. Its own pair takes 0.2 s to
  load arrays, lists and strings; `_LoopTyping` and `_LoopLowering` know numbers, ranges and pointers. A kernel that
  needs more (`lgamma`) is compiled with Numba's own, and so would be all, were the lean pair to fail.
- `Context._get_global_type`: what `resolve_value_type` asks last. Without our override of that, compiling the first
  kernel takes 10 ms more.
- `_get_module_for_linking`: the IR of the functions that a kernel calls. Where it is gone, `get_llvm_str` of the same
  library, with linkage changed, gives the same.

If all of it breaks, `cfunc(...).inspect_llvm()` is the public fallback, at the price of time and `noalias`.
"""
# mypy: disable-error-code="no-untyped-call, attr-defined, misc, assignment"

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
from numba import types
from numba.core import codegen, cpu, fastmathpass, registry, typing
from numba.core.compiler import CompilerBase, Flags, compile_extra
from numba.core.compiler_lock import global_compiler_lock
from numba.core.compiler_machinery import PassManager
from numba.core.errors import NumbaError
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.typing import templates
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode
from numba.np.numpy_support import from_dtype

from staticgrad.kernels.cpu.gemm.product import host
from staticgrad.kernels.cpu.llvm import llvm_lock, optimised, with_lanes
from staticgrad.kernels.cpu.native import compile_count, record_compile

__all__ = ["FASTMATH", "compile_count", "kernel_ir"]

# A multiply and an add may become one rounding, and nothing else. `arcp` and `afn` look harmless, but make LLVM replace
# 1 / sqrt(x) by an estimate that is NaN at zero and infinity; `nsz` loses the sign of zero; none is faster.
# Functions that a kernel calls inherit this unless they set `fastmath` themselves.
FASTMATH = frozenset({"contract"})

# The names of alias scopes hold Numba's names, which count compilations; without them equal kernels are equal text.
_NUMBA_NAME = re.compile(r'!"_ZN[^"]*"')


def kernel_ir(
    function: Callable[..., None], pointer_types: Sequence[np.dtype[Any]], symbol: str, *, numbers: int = 0
) -> str:
    """LLVM IR of `void symbol(T0 *noalias, T1 *noalias, ...)`, optimised for this CPU.

    Args: `function` takes one raw pointer per entry of `pointer_types`, indexes it (`p0[i]`), returns and raises
    nothing; `pointer_types` are the NumPy dtypes behind the pointers, where bool is seen as uint8 (0 or 1: test it with
    `!= 0`; a comparison may be stored as it is). As many int64 as `numbers` follow the pointers.
    Raises numba.core.errors.NumbaError when the function does not compile.
    """
    arguments = tuple(types.CPointer(_element_type(np.dtype(dtype))) for dtype in pointer_types)
    with global_compiler_lock, llvm_lock() as llvm:
        record_compile()
        try:
            return _compile(llvm, *_lean_contexts(), function, arguments, numbers, symbol)
        except (NumbaError, NotImplementedError):
            own = registry.cpu_target
            return _compile(llvm, own.typing_context, own.target_context, function, arguments, numbers, symbol)


_WIDENING = {"sin", "cos", "tan", "pow"}


class _LoopTyping(typing.Context):
    """The types of numbers, ranges and pointers, and of the functions entered by `intrinsic` and `scalar`."""

    _entered: int = 0

    def load_additional_registries(self) -> None:
        """None: lists, dictionaries and arrays are not met."""

    def resolve_value_type(self, value: Any) -> Any:
        """The type of a global. For a class, such as `range`, Numba would import all its containers to compare with."""
        known = self._get_global_type(value) if isinstance(value, type) else None
        return super().resolve_value_type(value) if known is None else known

    def _load_builtins(self) -> None:
        known = templates.builtin_registry
        count = len(known.functions) + len(known.attributes) + len(known.globals)
        if count == self._entered:
            return
        self._entered = count
        plain = templates.Registry()
        plain.functions = [f for f in known.functions if not issubclass(f, templates._OverloadFunctionTemplate)]
        plain.attributes = [a for a in known.attributes if not issubclass(a, templates._OverloadAttributeTemplate)]
        plain.globals = list(known.globals)
        self.install_registry(plain)


class _LoopLowering(cpu.CPUContext):
    """How numbers, ranges and pointers become LLVM instructions."""

    def load_additional_registries(self) -> None:
        """Only those that register themselves when they are imported."""
        from numba.core import optional
        from numba.cpython import builtins, numbers, rangeobj

        del optional, builtins, numbers, rangeobj

    def post_lowering(self, mod: Any, library: Any) -> None:
        """Mark the arithmetic with the fast-math flags, as Numba's own does; its memory manager is not linked."""
        if self.fastmath:
            fastmathpass.rewrite_module(mod, self.fastmath)


@cache
def _lean_contexts() -> tuple[Any, Any]:
    types_known = _LoopTyping()
    return types_known, _LoopLowering(types_known)


def _compile(
    llvm: Any,
    types_known: Any,
    target: Any,
    function: Callable[..., None],
    pointers: tuple[Any, ...],
    numbers: int,
    symbol: str,
) -> str:
    library = _Library(target.codegen(), symbol)
    result = compile_extra(
        types_known,
        target,
        function,
        (*pointers, *[types.int64] * numbers),
        types.void,
        _flags(),
        {},
        library=library,
        pipeline_class=_KernelCompiler,
    )
    module = library.link(llvm)
    if _computes_wider(function, pointers):
        module = llvm.parse_assembly(with_lanes(str(module), host().vector_bytes // 4))
    module.link_in(llvm.parse_assembly(_wrapper(symbol, result.fndesc.mangled_name, len(pointers), numbers)))
    return _NUMBA_NAME.sub('!""', optimised(llvm, module, symbol))


def _computes_wider(function: Callable[..., None], pointers: Sequence[Any]) -> bool:
    """Whether a kernel of float32 uses functions that compute in float64.

    LLVM takes as many lanes as registers hold float64, so that all else in the loop would use half a register.
    """
    floats = {pointer.dtype for pointer in pointers if isinstance(pointer.dtype, types.Float)}
    return floats == {types.float32} and not _WIDENING.isdisjoint(function.__code__.co_names)


def _element_type(dtype: np.dtype[Any]) -> Any:
    return types.uint8 if dtype == np.bool_ else from_dtype(dtype)


def _flags() -> Any:
    flags = Flags()
    flags.nrt = False
    flags.no_cpython_wrapper = True
    flags.no_cfunc_wrapper = True
    flags.no_compile = True
    flags.no_rewrites = True
    flags.noalias = True
    flags.forceinline = True  # into the wrapper, which has the plain signature
    flags.boundscheck = False
    flags.error_model = "numpy"
    flags.fastmath = cpu.FastMathOptions(set(FASTMATH))
    return flags


class _KernelCompiler(CompilerBase):
    """Numba's pipeline reduced to what plain loops over pointers need."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("kernel")
        for step in (
            TranslateByteCode,
            FixupArgs,
            IRProcessing,
            ReconstructSSA,
            NopythonTypeInference,
            PreLowerStripPhis,
            IRLegalization,
            NativeLowering,
            NoPythonBackend,
        ):
            manager.add_pass(step, step.__name__)
        manager.finalize()
        return [manager]


class _Library(codegen.CodeLibrary):
    """Takes the lowered module from Numba as text, before any work of LLVM's."""

    def __init__(self, target: Any, name: str) -> None:
        super().__init__(target, name)
        self._texts: list[str] = []
        self._called: list[Any] = []

    def add_ir_module(self, ir_module: Any) -> None:
        self._texts.append(str(ir_module))

    def add_linking_library(self, library: Any) -> None:
        self._called.append(library)

    def link(self, llvm: Any) -> Any:
        """One module with the kernel and the functions it calls, which are compiled but not yet inlined."""
        module = llvm.parse_assembly(self._texts[0])
        for text in self._texts[1:]:
            module.link_in(llvm.parse_assembly(text))
        for library in self._called:
            callee = library._get_module_for_linking()
            wanted = {f.name for f in module.functions if f.is_declaration}
            if any(f.name in wanted for f in callee.functions if not f.is_declaration):
                module.link_in(callee, preserve=True)
        return module

    def finalize(self) -> None:
        """Nothing to do: the module is linked and optimised later."""

    def get_function(self, name: str) -> Any:
        raise NotImplementedError(name)

    def get_llvm_str(self) -> str:
        return "\n".join(self._texts)

    def get_asm_str(self) -> str:
        raise NotImplementedError("a kernel's library holds no machine code")


def _wrapper(symbol: str, kernel: str, pointers: int, numbers: int) -> str:
    """The plain C signature around Numba's own: a return slot and an exception slot come first there, both unused."""
    parameters = [f"ptr noalias %p{i}" for i in range(pointers)] + [f"i64 %n{i}" for i in range(numbers)]
    arguments = "".join(f", ptr %p{i}" for i in range(pointers)) + "".join(f", i64 %n{i}" for i in range(numbers))
    return f"""
declare i32 @"{kernel}"(ptr, ptr{", ptr" * pointers}{", i64" * numbers})
define void @"{symbol}"({", ".join(parameters)}) {{
  %result = alloca ptr
  %exception = alloca ptr
  %status = call i32 @"{kernel}"(ptr %result, ptr %exception{arguments})
  ret void
}}
"""
