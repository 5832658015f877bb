"""The whole suite runs with the shapes in loglik's signatures checked, and each test from the same seed."""

import sys

import jaxtyping
import pytest
import torch

assert "loglik" not in sys.modules, "loglik was imported before its signatures could be checked"
jaxtyping.install_import_hook("loglik", "beartype.beartype")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws from torch's global generator as from a fresh start."""
    torch.manual_seed(0)
