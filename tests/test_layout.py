"""The rules between the folders: who may import what, and what importing staticgrad costs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ["numba", "llvmlite", "scipy", "matplotlib", "tqdm", "safetensors", "cuda"]
MOVED = ["graph", "kernels"]  # folders at the top of the repository, installed inside the package


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """Each module that a file imports, and whether it does so inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        lazy = id(node) in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write the whole name instead of a relative import"
            yield from ((f"{node.module}.{alias.name}", lazy) for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_graph_imports_numpy_and_itself_only() -> None:
    faults = []
    for path in sources("graph"):
        for name, lazy in imported(path):
            top = name.partition(".")[0]
            if top in sys.stdlib_module_names or top == "numpy" or within(name, "staticgrad.graph"):
                continue
            if path.name == "numpy_math.py" and lazy and within(name, "scipy.special"):
                continue
            faults.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not faults


def test_kernels_do_not_import_what_stands_above_them() -> None:
    faults = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources("kernels")
        for name, _ in imported(path)
        if within(name, "staticgrad") and not any(within(name, f"staticgrad.{part}") for part in MOVED)
    ]
    assert not faults


def test_no_device_imports_the_other_and_what_both_share_imports_neither() -> None:
    """The registry of devices loads the one that is asked for, when it is asked for: no other file knows of both."""
    devices = {folder: f"staticgrad.kernels.{folder}" for folder in ("cpu", "cuda")}
    faults = []
    for path in sources("kernels"):
        part = path.relative_to(ROOT / "kernels").parts[0]
        for name, lazy in imported(path):
            to_device = any(within(name, package) for package in devices.values())
            own = part in devices and within(name, devices[part])
            if to_device and not own and not (part == "device.py" and lazy):
                faults.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not faults


def test_nothing_is_imported_by_a_bare_name() -> None:
    faults = [
        f"{path.relative_to(ROOT)} imports {name}"
        for folder in ("graph", "kernels", "staticgrad", "tests", "benchmarks", "examples")
        for path in sources(folder)
        for name, _ in imported(path)
        if name.partition(".")[0] in MOVED
    ]
    assert not faults
    assert not set(MOVED) & set(sys.modules)


def test_importing_staticgrad_loads_nothing_heavy() -> None:
    code = "import json, sys; import staticgrad; print(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    tops = {name.partition(".")[0] for name in json.loads(output)}
    assert not tops & {*HEAVY, *MOVED}


def public_modules() -> list[str]:
    """Found by their files, so that collecting the tests imports none of them."""
    names = []
    for folder, package in {"staticgrad": "staticgrad", **{name: f"staticgrad.{name}" for name in MOVED}}.items():
        for path in sources(folder):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if not any(part.startswith("_") and part != "__init__" for part in parts):
                names.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return names


@pytest.mark.parametrize("name", public_modules())
def test_public_names_have_docstrings(name: str) -> None:
    module = importlib.import_module(name)
    empty = not Path(str(module.__file__)).read_text(encoding="utf-8")
    missing = [] if module.__doc__ or empty else [name]
    for title, value in vars(module).items():
        if title.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isfunction(value) and not value.__doc__:
            missing.append(f"{name}.{title}")
        elif inspect.isclass(value):
            missing += undocumented(value, f"{name}.{title}")
    assert not missing


def undocumented(cls: type, name: str) -> list[str]:
    """The class and its own public methods, where neither they nor what they override has a docstring."""
    methods = [
        title
        for title, value in vars(cls).items()
        if not title.startswith("_") and inspect.isfunction(value) and not inspect.getdoc(getattr(cls, title))
    ]
    return ([] if cls.__doc__ else [name]) + [f"{name}.{title}" for title in methods]


def test_a_checkout_is_importable_where_another_install_would_be_shadowed() -> None:
    """`python -m` from the root of a checkout finds staticgrad/ there first, without graph/ and kernels/ inside."""
    script = (
        "import sys; sys.meta_path[:] = [m for m in sys.meta_path if 'editable' not in repr(m).lower()]; "
        "sys.path_hooks[:] = [h for h in sys.path_hooks if 'editable' not in repr(h).lower()]; "
        "import staticgrad as sg; sg.compile(lambda x: x + 1)(sg.asarray([1.0])); "
        "assert 'graph' not in sys.modules and 'kernels' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_devices_know_which_device_it_is() -> None:
    """Outside of kernels/, no line compares the name of a device or asks what kind of array it has in hand."""
    names = {"DeviceArray", "SIMULATED", "kernels.cuda", "kernels.cpu.device"}
    faults = []
    for path in sources("staticgrad"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            compares = re.search(r"(==|!=|\bin\b|startswith\().{0,20}[\"'](cuda|cpu)", line)
            if compares or any(name in line for name in names):
                faults.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert not faults
