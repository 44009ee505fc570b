"""`Module`: a tree of parameters, buffers and submodules with a `forward`, under PyTorch's names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

import staticgrad as sg
from staticgrad._context import context
from staticgrad.autograd.hooks import RemovableHandle
from staticgrad.capture_state import watch
from staticgrad.graph.errors import DTypeError
from staticgrad.kernels.device import find_device, names_device
from staticgrad.nn.parameter import Parameter, convert_in_place
from staticgrad.nn.state import IncompatibleKeys, collect_state, load_state
from staticgrad.operands import check_dtype
from staticgrad.tensor import Tensor


@dataclass(eq=False)
class Registry:
    """Where a module keeps what is registered with it; one dict for each kind, in order of registration."""

    parameters: dict[str, Parameter | None] = field(default_factory=dict)
    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    modules: dict[str, Module | None] = field(default_factory=dict)
    transient: set[str] = field(default_factory=set)  # buffers that state_dict leaves out
    before: dict[int, Callable[..., Any]] = field(default_factory=dict)  # hooks on forward
    after: dict[int, Callable[..., Any]] = field(default_factory=dict)

    def kinds(self) -> tuple[dict[str, Any], ...]:
        """The three dicts of named entries."""
        return self.parameters, self.buffers, self.modules


def _no_forward(self: Module, *args: Any, **kwargs: Any) -> Any:
    """What the module computes; every subclass defines it."""
    raise NotImplementedError(f"{type(self).__name__}: a module needs a forward method; define forward(self, ...)")


class Module:
    """Base of all models. Parameters, buffers and modules that are assigned as attributes are registered.

    Subclasses call `super().__init__()` first and define `forward`; calling the module calls it.

    >>> import staticgrad as sg
    >>> class Scale(sg.nn.Module):
    ...     def __init__(self, size):
    ...         super().__init__()
    ...         self.factor = sg.nn.Parameter(sg.ones(size))
    ...
    ...     def forward(self, x):
    ...         return self.factor * x
    >>> model = sg.nn.Sequential(sg.nn.Linear(3, 2), Scale(2))
    >>> [name for name, _ in model.named_parameters()]
    ['0.weight', '0.bias', '1.factor']
    >>> model(sg.ones((4, 3))).shape
    (4, 2)
    """

    training: bool
    last_change: tuple[int, str]  # how often attributes were assigned, and which one last
    forward: Callable[..., Any] = _no_forward

    def __init__(self) -> None:
        object.__setattr__(self, "_registry", Registry())
        object.__setattr__(self, "training", True)
        object.__setattr__(self, "last_change", (0, ""))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if context.capture is not None:
            self._guard()
        registry = self._known()
        if not registry.before and not registry.after:
            return self.forward(*args, **kwargs)
        for before in list(registry.before.values()):
            changed = before(self, args)
            if changed is not None:
                args = changed if isinstance(changed, tuple) else (changed,)
        out = self.forward(*args, **kwargs)
        for after in list(registry.after.values()):
            changed = after(self, args, out)
            out = out if changed is None else changed
        return out

    def _guard(self) -> None:
        """Have a compiled step compile again once an attribute was assigned, a hook removed, or the mode changed."""
        watch(self, "last_change")
        if self._known().before or self._known().after:
            watch(self, "_hooks")
        if type(self).__module__.partition(".")[0] != "staticgrad":  # ours watch the mode where they read it
            watch(self, "training")

    @property
    def _hooks(self) -> tuple[int, ...]:
        return (*self._known().before, *self._known().after)

    def _note_change(self, name: str) -> None:
        """Remember that the attribute `name` was assigned or deleted; the mode has a guard of its own."""
        if name != "training":
            object.__setattr__(self, "last_change", (self.last_change[0] + 1, name))

    # ---------------------------------------------------------------- registration

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Make `parameter` an attribute that training updates; None reserves the name."""
        self._require_name(name, "parameter")
        if parameter is not None and not isinstance(parameter, Parameter):
            raise TypeError(f"register_parameter: {name} must be a Parameter or None; got {type(parameter).__name__}")
        self._store(name, parameter, "parameters")

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Make `tensor` an attribute that is state but not trained; state_dict holds it if `persistent`."""
        self._require_name(name, "buffer")
        if tensor is not None and not isinstance(tensor, Tensor):
            raise TypeError(
                f"register_buffer: {name} must be a Tensor or None; got {type(tensor).__name__}; wrap it in sg.asarray"
            )
        self._store(name, tensor, "buffers")
        if not persistent:
            self._known().transient.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Make `module` a child under the attribute `name`; None reserves the name."""
        self._require_name(name, "module")
        if module is not None and not isinstance(module, Module):
            raise TypeError(f"add_module: {name} must be a Module or None; got {type(module).__name__}")
        self._store(name, module, "modules")

    register_module = add_module

    def _known(self) -> Registry:
        try:
            registry: Registry = self.__dict__["_registry"]
        except KeyError:
            raise AttributeError(
                f"{type(self).__name__}: nothing can be assigned before super().__init__() was called"
            ) from None
        return registry

    def _require_name(self, name: str, kind: str) -> None:
        registry = self._known()
        if not isinstance(name, str) or not name or "." in name:
            raise KeyError(f"a {kind}'s name must be a string with no dot, and not empty; got {name!r}")
        if not any(name in entries for entries in registry.kinds()) and hasattr(self, name):
            raise KeyError(f"{type(self).__name__}: the attribute {name!r} exists already and is not a {kind}")

    def _store(self, name: str, value: Any, kind: str) -> None:
        self._known().transient.discard(name)
        self._note_change(name)
        self._replace(getattr(self._known(), kind), name, value)

    def _forget(self, name: str) -> bool:
        """Remove `name` from wherever it is registered, or from the plain attributes; say whether it was there."""
        registry = self._known()
        self._note_change(name)
        registry.transient.discard(name)
        found = self.__dict__.pop(name, registry) is not registry
        for entries in registry.kinds():
            found = entries.pop(name, registry) is not registry or found
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        registry = self._known()
        if not _same(value, self.__dict__.get(name, registry)):
            self._note_change(name)
        if isinstance(value, Parameter):
            self._replace(registry.parameters, name, value)
        elif isinstance(value, Module):
            self._replace(registry.modules, name, value)
        elif name in registry.parameters and value is not None:
            raise TypeError(
                f"{type(self).__name__}.{name} is a parameter and takes a Parameter or None; "
                f"got {type(value).__name__}; to change its value call {name}.copy_(value) under sg.no_grad()"
            )
        elif name in registry.parameters:
            registry.parameters[name] = None
        elif name in registry.modules and value is not None:
            raise TypeError(
                f"{type(self).__name__}.{name} is a module and takes a Module or None; got {type(value).__name__}"
            )
        elif name in registry.modules:
            registry.modules[name] = None
        elif name in registry.buffers:
            self.register_buffer(name, value, persistent=name not in registry.transient)
        else:
            object.__setattr__(self, name, value)

    def _replace(self, entries: dict[str, Any], name: str, value: Any) -> None:
        """Assign in place, so that the order of registration stays; move it here if it was of another kind."""
        if name not in entries:
            self._forget(name)
        entries[name] = value

    def __getattr__(self, name: str) -> Any:
        registry = self.__dict__.get("_registry")
        if registry is not None:
            for entries in registry.kinds():
                if name in entries:
                    return entries[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        if not self._forget(name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __dir__(self) -> list[str]:
        registered = [name for entries in self._known().kinds() for name in entries]
        return sorted({*super().__dir__(), *registered})

    # ---------------------------------------------------------------- traversal

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module under `prefix` and all below it, each once, parents first."""
        seen: set[int] = set()
        pending: list[tuple[str, Module]] = [(prefix, self)]
        while pending:
            path, module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            yield path, module
            below = [(joined(path, name), child) for name, child in module._known().modules.items() if child]
            pending.extend(reversed(below))

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, each once."""
        seen: set[int] = set()
        for name, child in self._known().modules.items():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                yield name, child

    def children(self) -> Iterator[Module]:
        """The modules directly below, each once."""
        return (child for _, child in self.named_children())

    def named_parameters(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Parameter]]:
        """Parameters under dotted names, each once, those of this module first."""
        return self._named("parameters", prefix, recurse)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """Parameters, each once: what an optimizer takes."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(self, prefix: str = "", recurse: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Buffers under dotted names, each once."""
        return self._named("buffers", prefix, recurse)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """Buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def _named(self, kind: str, prefix: str, recurse: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        for path, module in self.named_modules(prefix) if recurse else [(prefix, self)]:
            for name, value in getattr(module._known(), kind).items():
                if value is not None and id(value) not in seen:
                    seen.add(id(value))
                    yield joined(path, name), value

    def get_submodule(self, target: str) -> Module:
        """The module under a dotted name; the empty name is this one."""
        module = self
        for name in target.split(".") if target else []:
            child = module._known().modules.get(name)
            if child is None:
                raise AttributeError(f"{type(module).__name__}: no submodule {name!r}, asked for as {target!r}")
            module = child
        return module

    def apply(self, function: Callable[[Module], None]) -> Self:
        """Call `function` on every module below and then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # ---------------------------------------------------------------- modes and gradients

    def train(self, mode: bool = True) -> Self:
        """Set `training` here and below; dropout reads it."""
        if not isinstance(mode, bool):
            raise ValueError(f"train: mode must be True or False; got {mode!r}")
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """The same as `train(False)`."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Have gradients recorded for every parameter, or not."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradient of every parameter, or fill it with zeros."""
        clear_grads(self.parameters(), set_to_none)

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call `hook(module, args)` before each forward; what it returns, unless None, replaces the arguments."""
        self._note_change("hooks")
        return _add_hook(self._known().before, hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> RemovableHandle:
        """Call `hook(module, args, output)` after each forward; what it returns, unless None, replaces the output."""
        self._note_change("hooks")
        return _add_hook(self._known().after, hook)

    # ---------------------------------------------------------------- conversion

    def to(self, *targets: Any, dtype: Any = None, device: str | None = None) -> Self:
        """Move parameters and buffers to a device and convert the floating ones to a dtype, in place, with gradients.

        The parameters stay the same objects. The state of an optimizer follows them to a device with the next step,
        and keeps its dtype: make the optimizer after a conversion.

        Args:
            targets: a dtype, a device, or both, in any order.
            dtype: floating.
            device: "cpu", "cuda" or "cuda:1".

        Raises:
            DTypeError: the dtype is not floating.
            DeviceError: the device does not exist.
        """
        for target in targets:
            if names_device(target):
                device = target
            else:
                dtype = target
        where = None if device is None else find_device(device).name
        wanted = None if dtype is None else check_dtype("Module.to", dtype)
        if wanted is not None and wanted.kind != "f":
            raise DTypeError(f"Module.to: dtype must be floating; got {wanted}")
        for tensor in [*self.parameters(), *self.buffers()]:
            target = tensor.dtype if wanted is None or tensor.dtype.kind != "f" else wanted
            if target != tensor.dtype or where not in (None, tensor.device):
                convert_in_place(tensor, target, where)
        return self

    def float(self) -> Self:
        """The same as `to(float32)`."""
        return self.to(np.float32)

    def double(self) -> Self:
        """The same as `to(float64)`."""
        return self.to(np.float64)

    # ---------------------------------------------------------------- state

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and persistent buffers under dotted names, detached but sharing their memory."""
        return collect_state(self, prefix)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values from `state_dict` (Tensors or arrays) into the parameters and buffers of the same names.

        Args:
            state_dict: as `state_dict()` gives it; dtypes are converted.
            strict: whether names that only one side has are an error.

        Returns:
            the names that were missing and those that were not expected.

        Raises:
            RuntimeError: lists all that does not fit; nothing is changed then.
        """
        return load_state(self, state_dict, strict)

    # ---------------------------------------------------------------- text

    def extra_repr(self) -> str:
        """What `repr` shows between the parentheses; for subclasses to define."""
        return ""

    def __repr__(self) -> str:
        extra = self.extra_repr()
        lines = extra.split("\n") if extra else []
        children = []
        for name, child in self._known().modules.items():
            children.append(f"({name}): " + repr(child).replace("\n", "\n  "))
        if len(lines) <= 1 and not children:
            return f"{type(self).__name__}({extra})"
        body = "".join(f"\n  {line}" for line in [*lines, *children])
        return f"{type(self).__name__}({body}\n)"


def _same(value: Any, before: Any) -> bool:
    """Whether assigning `value` over `before` changes nothing."""
    return value is before or (isinstance(value, int | float | str) and type(value) is type(before) and value == before)


def _add_hook(hooks: dict[int, Callable[..., Any]], hook: Callable[..., Any]) -> RemovableHandle:
    if not callable(hook):
        raise TypeError(f"Module: a hook must be callable; got {type(hook).__name__}")
    key = max(hooks, default=0) + 1
    hooks[key] = hook
    return RemovableHandle(hooks, key)


def joined(path: str, name: str) -> str:
    """A dotted name."""
    return f"{path}.{name}" if path else name


def clear_grads(parameters: Any, set_to_none: bool) -> None:
    """Set the gradient of each of `parameters` to None, or to zeros where there is one."""
    for parameter in parameters:
        if set_to_none or parameter.grad is None:
            parameter.grad = None
        else:
            parameter.grad = sg.zeros_like(parameter.grad)
