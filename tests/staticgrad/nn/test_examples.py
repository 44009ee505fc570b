"""The examples in the docstrings of nn and optim run and print what they say; each has one where it helps."""

import doctest
import importlib
import pkgutil

import pytest

from staticgrad import nn, optim

MODULES = [
    f"{package.__name__}.{module.name}" for package in (nn, optim) for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize("package", [nn, nn.functional, nn.init, nn.utils, optim, optim.lr_scheduler])
def test_public_names_are_documented(package):
    for name in package.__all__:
        value = getattr(package, name)
        if callable(value):
            assert value.__doc__, f"{package.__name__}.{name} has no docstring"
