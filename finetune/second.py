"""A second thread for work that needs nothing of the first one's, on a CPU.

PyTorch's threads share the work of each operator and meet after it. Where operators are as small as the pocket base's
that gains little (two threads took 0.84 times as long as one for a forward and a backward pass), and one that has to
wait for another program's turn holds up all. Two threads that meet a few times a step do not.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch


class SecondThread:
    """While it works, it and the caller have half of PyTorch's threads each. Neither may write what the other uses."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._half = max(1, self._threads // 2)
        self._pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(self._half,))
        self._work: Future[Any] | None = None

    def start(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Call work(*arguments) there. One piece of work at a time."""
        assert self._work is None
        torch.set_num_threads(self._half)
        self._work = self._pool.submit(work, *arguments)

    def result(self) -> Any:
        """What the work returned, or its error, once it is done; None where nothing was started."""
        work, self._work = self._work, None
        try:
            return None if work is None else work.result()
        finally:
            torch.set_num_threads(self._threads)
