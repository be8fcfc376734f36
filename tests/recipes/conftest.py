"""The recipe of a test module, by its RECIPE, imported as when the file is run."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def recipes_folder():
    folder = Path(__file__).parents[2] / "recipes"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder


@pytest.fixture(scope="module")
def recipe(request, recipes_folder):
    return importlib.import_module(request.module.RECIPE)
