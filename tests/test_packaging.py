"""What is installed: one package at the top of site-packages, with every folder and data file in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOLDERS = {"staticgrad": "staticgrad", "graph": "staticgrad.graph", "kernels": "staticgrad.kernels"}


def packages_on_disk() -> set[str]:
    found = set()
    for folder, package in FOLDERS.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the build reads, so that nothing is built inside the repository."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> list[str]:
    """The names of the files in the wheel."""
    target = checkout / "dist"
    pip("wheel", str(checkout), "--no-deps", "--no-build-isolation", "--wheel-dir", str(target))
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_every_folder_with_code_is_listed() -> None:
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_the_wheel_has_one_package_at_its_top(wheel: list[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"staticgrad"}


def test_the_wheel_holds_every_file(wheel: list[str]) -> None:
    expected = {
        f"{package.replace('.', '/')}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - set(wheel) == set()
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("/")[2] for name in wheel}


def test_an_editable_install_has_one_package_at_its_top(checkout: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--editable", str(checkout), "--no-deps", "--no-build-isolation", "--target", str(site))
    code = (
        "import importlib.util, site, sys; sys.path[1:1] = sys.argv[1:]; site.addsitedir(sys.argv[1])\n"
        "print([name for name in ('graph', 'kernels', 'staticgrad') if importlib.util.find_spec(name)])\n"
        "import staticgrad.graph, staticgrad.kernels\n"
        "print(staticgrad.graph.__file__)"
    )
    libraries = [path for path in sys.path if path.endswith("site-packages")]  # for NumPy; their .pth files stay unread
    command = [sys.executable, "-S", "-c", code, str(site), *libraries]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    importable, where = done.stdout.splitlines()
    assert importable == "['staticgrad']"
    assert Path(where) == checkout / "graph" / "__init__.py"


def test_names_at_the_command_line_and_the_versions() -> None:
    project = PROJECT["project"]
    assert project["scripts"] == {"staticgrad": "staticgrad.cli:main"}
    versions = {entry.rpartition(" ")[2] for entry in project["classifiers"] if "Python :: 3." in entry}
    assert versions == {"3.11", "3.12", "3.13", "3.14"}
    assert {"cli", "viz", "bench", "dev"} <= project["optional-dependencies"].keys()


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
    assert "CC BY 4.0" in (ROOT / "NOTICE").read_text(encoding="utf-8")
