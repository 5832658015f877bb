"""One thread for small work, and the thread count restored afterwards."""

import pytest
import torch

from loglik.cpu.choices import Choices, use_choices
from loglik.cpu.threads import threads_for


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with use_choices(Choices(single_thread=2**20)):
        yield
    torch.set_num_threads(threads)


def test_small_work_runs_on_one_thread(two_threads):
    with threads_for(2**20):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    with threads_for(2**20 + 1):
        assert torch.get_num_threads() == 2


def test_threads_come_back_after_an_error(two_threads):
    with pytest.raises(ZeroDivisionError), threads_for(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
