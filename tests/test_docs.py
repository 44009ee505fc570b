"""What the documents say works: their code runs, their commands exist, the examples of docstrings hold."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
SHELLS = ("console", "bash", "sh", "shell")


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of its first line of code


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    return [
        Block(found["language"], found["text"], text.count("\n", 0, found.start("text")) + 1)
        for found in FENCE.finditer(text)
    ]


def documents_with(*languages: str) -> list[object]:
    return [
        pytest.param(path, id=path.relative_to(ROOT).as_posix())
        for path in DOCUMENTS
        if path.exists() and any(block.language in languages for block in blocks(path))
    ]


@pytest.mark.parametrize("path", documents_with("python"))
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for block in blocks(path):
        if block.language == "python":
            # Empty lines in front, so that an error names the line of the document.
            code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
            exec(code, namespace)


def commands(path: Path) -> Iterator[list[str]]:
    """Each command of the shell blocks; in a console block the lines that begin with `$`."""
    for block in blocks(path):
        if block.language not in SHELLS:
            continue
        for line in block.text.replace("\\\n", " ").splitlines():
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    del words[0]
                if words:
                    yield words


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def module_exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__main__.py").exists() or name in ("pip", "venv", "pytest")


def staticgrad_help(arguments: list[str]) -> tuple[int, str]:
    """What `staticgrad <command> --help` prints, and its exit status."""
    from staticgrad.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            status = main([*arguments, "--help"])
        except SystemExit as end:
            status = end.code
    return int(status or 0), output.getvalue()


@pytest.mark.parametrize("path", documents_with(*SHELLS))
def test_commands_exist(path: Path) -> None:
    for words in commands(path):
        program, arguments = words[0].removeprefix(".venv/bin/"), words[1:]
        if program == "make":
            targets = {word for word in arguments if "=" not in word and not word.startswith("-")}
            assert targets <= make_targets(), words
        elif program == "staticgrad":
            status, text = staticgrad_help(arguments[:1])
            assert status == 0, words
            options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
            assert options <= set(re.findall(r"--[\w-]+", text)), words
        elif program in ("python", "python3") and arguments[:1] == ["-m"]:
            assert module_exists(arguments[1]), words
        elif program in ("python", "python3"):
            assert (ROOT / arguments[0]).exists(), words
        else:
            assert program in ("git", "cd", "pip", "pytest", ".ci/run"), words


def modules_with_examples() -> list[str]:
    names = []
    for folder, package in (("graph", "staticgrad.graph"), ("kernels", "staticgrad.kernels"), ("staticgrad",) * 2):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = [part for part in path.relative_to(ROOT / folder).with_suffix("").parts if part != "__init__"]
                names.append(".".join([package, *parts]))
    return names


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.FAIL_FAST
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=flags)
    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_every_document_is_covered() -> None:
    """A fence that is opened with another language tag would escape the tests above."""
    known = {"python", "text", "make", "toml", "", *SHELLS}
    unknown = {
        f"{path.relative_to(ROOT)}:{block.line} {block.language}"
        for path in DOCUMENTS
        if path.exists()
        for block in blocks(path)
        if block.language not in known
    }
    assert not unknown
