"""Floating-point operations, counted while PyTorch runs: convolutions, GEMMs and attention; a multiply-add is two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


def count_flops(work: Callable[[], Any]) -> int:
    """What `work` costs."""
    attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}
    with torch.inference_mode(), FlopCounterMode(display=False, custom_mapping=attention) as counter:
        work()
    return int(counter.get_total_flops())


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_: Any, **__: Any) -> int:
    """q: [b, heads, n, d], k, v: [b, heads, m, d]: two products of n x m x d."""
    return 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])
