"""The whole suite runs with the types and shapes in loglik's signatures checked, and each test from the same seed."""

import os
import sys

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype

pytest.register_assert_rewrite("helpers.densities", "helpers.commands")

assert "loglik" not in sys.modules, "loglik was imported before its signatures could be checked"
check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as for mypy
jaxtyping.install_import_hook("loglik", "conftest.check_types")

os.environ.setdefault("LOGLIK_CPU", "loglik")  # loglik's own operations, and numbers that no measurement decides
torch.set_num_threads(1)  # the suite's tensors are tiny


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws from torch's global generator as from a fresh start."""
    torch.manual_seed(0)


@pytest.fixture
def float64():
    """Default tensors are float64 within the test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def own_folder(tmp_path, monkeypatch) -> None:
    """The test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
