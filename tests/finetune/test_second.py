from __future__ import annotations

import threading

import pytest
import torch

from posecrafter.finetune.second import SecondThread


@pytest.mark.usefixtures("two_threads")
def test_work_runs_beside_the_caller_with_half_of_the_threads_each() -> None:
    second, met = SecondThread(), threading.Barrier(2)

    def work(number: int) -> tuple[int, int]:
        met.wait(timeout=60)  # only passed if both are there at once
        return number + 1, torch.get_num_threads()

    second.start(work, 4)
    assert torch.get_num_threads() == 1
    met.wait(timeout=60)
    assert second.result() == (5, 1)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_of_the_work_reaches_the_caller_who_has_his_threads_back() -> None:
    second = SecondThread()
    second.start(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        second.result()
    assert torch.get_num_threads() == 2
    assert second.result() is None
