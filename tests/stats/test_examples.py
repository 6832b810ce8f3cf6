"""The examples in the docstrings, with their numbers."""

import doctest
import importlib
import pkgutil

import pytest

from fitspace import stats

MODULES = [f"fitspace.stats.{module.name}" for module in pkgutil.iter_modules(stats.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
