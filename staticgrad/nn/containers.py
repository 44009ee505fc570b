"""Modules that hold modules: a chain, a list, a dict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, overload

from staticgrad.nn.module import Module


class Indexed(Module):
    """Modules under the names "0", "1", ..., with the methods of a list."""

    def _place(self, index: int) -> str:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"{type(self).__name__}: index must lie in [{-size}, {size}); got {index}")
        return list(self._known().modules)[index]

    def _fill(self, modules: Iterable[Module]) -> None:
        """Take `modules` as the whole content, named by their positions."""
        kept = list(modules)
        self._note_change("modules")
        self._known().modules.clear()
        for index, module in enumerate(kept):
            self.add_module(str(index), module)

    def __len__(self) -> int:
        return len(self._known().modules)

    def __iter__(self) -> Iterator[Module]:
        return iter([module for module in self._known().modules.values() if module is not None])

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            part = type(self).__new__(type(self))
            Module.__init__(part)
            for name, module in list(self._known().modules.items())[index]:
                part.add_module(name, module)
            return part
        return self._known().modules[self._place(index)]

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._place(index), module)

    def __delitem__(self, index: int | slice) -> None:
        kept = list(self)
        del kept[index]
        self._fill(kept)

    def append(self, module: Module) -> Self:
        """Add `module` at the end."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add `modules` at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> None:
        """Put `module` before the one at `index`."""
        kept = list(self)
        kept.insert(index, module)
        self._fill(kept)


class Sequential(Indexed):
    """A chain: each module takes what the one before gives.

    Args:
        *modules: the modules in order, or one dict from names to modules.
    """

    def __init__(self, *modules: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(modules) == 1 and isinstance(modules[0], Mapping):
            for name, named in modules[0].items():
                self.add_module(name, named)
            return
        for index, module in enumerate(modules):
            if not isinstance(module, Module):
                raise TypeError(f"Sequential: takes modules, or one dict of them; got {type(module).__name__}")
            self.add_module(str(index), module)

    def forward(self, input: Any) -> Any:
        """Apply the modules in order."""
        for module in self:
            input = module(input)
        return input


class ModuleList(Indexed):
    """A list of modules, registered so that their parameters are found; it has no `forward`."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)


class ModuleDict(Module):
    """A dict of modules, registered so that their parameters are found; it has no `forward`."""

    def __init__(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]] = ()) -> None:
        super().__init__()
        self.update(modules)

    def __getitem__(self, key: str) -> Any:
        return self._known().modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        self.pop(key)

    def __len__(self) -> int:
        return len(self._known().modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known().modules)

    def __contains__(self, key: str) -> bool:
        return key in self._known().modules

    def keys(self) -> Iterable[str]:
        """The names."""
        return self._known().modules.keys()

    def values(self) -> Iterable[Any]:
        """The modules."""
        return self._known().modules.values()

    def items(self) -> Iterable[tuple[str, Any]]:
        """Pairs of name and module."""
        return self._known().modules.items()

    def update(self, modules: Mapping[str, Module] | Iterable[tuple[str, Module]]) -> None:
        """Add `modules`, replacing those of the same name."""
        for name, module in dict(modules).items():
            self.add_module(name, module)

    def pop(self, key: str) -> Any:
        """Remove the module under `key` and return it."""
        self._note_change(key)
        return self._known().modules.pop(key)

    def clear(self) -> None:
        """Remove all."""
        self._note_change("modules")
        self._known().modules.clear()
