"""The examples in the docstrings, with their numbers."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

from fitspace import stats

MODULES = [f"fitspace.stats.{module.name}" for module in pkgutil.iter_modules(stats.__path__)]


def test_every_function_has_one():
    functions = [getattr(stats, name) for name in stats.__all__]
    bare = [f.__name__ for f in functions if callable(f) and ">>>" not in (f.__doc__ or "")]
    assert bare == ["Analysis"]  # what analyse returns


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0


def test_a_plain_analysis_loads_no_library_that_it_does_not_use(tmp_path):
    """scipy.stats and statsmodels take longer to import than an analysis takes to run."""
    table = tmp_path / "table.csv"
    table.write_text("y,a\n1,u\n2,v\n4,u\n3,v\n")
    program = (
        "import sys; from fitspace.cli import main; "
        f"main(['anova', {str(table)!r}, '--formula', 'y ~ a', '--json']); "
        "print(sorted({'scipy.stats', 'statsmodels', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
