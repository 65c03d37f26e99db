"""Causal attention over all earlier positions or over a sliding window, with grouped key and value heads.

Legend: B batch, T position, N query heads, K key/value heads, H head width, Q positions of one query block.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_BLOCKS_PER_WINDOW = 4
"""How many blocks of queries make a window of W positions.

A block of W/4 queries computes 1.25 W keys a query, of which W are visible; a block of W queries would compute 2 W.
Measured at T 512, W 256, 4 heads of 128, batch 4, forward and backward on 2 cores: blocks of 256 take 43 ms, of 128
33 ms, of 64 27 ms, the whole causal triangle 47 ms."""

_SMALLEST_BLOCK = 64
"""The CPU kernel's own block is 32 or 64 queries: smaller blocks add calls and save nothing."""


def causal_attention(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, *, scale: float) -> Tensor:
    """Return the attention of every position to itself and all positions before it: [B, N, T, H]."""
    return _attend(q_BNTH, k_BKTH, v_BKTH, None, scale)


def window_attention(q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, *, window: int, scale: float) -> Tensor:
    """Return the attention of every position to the last `window` positions, itself included: [B, N, T, H].

    Time and memory grow with T * window, not T * T: each block of queries is multiplied only with the key blocks that its
    window reaches. All blocks use the same mask.
    """
    num_positions = q_BNTH.shape[2]
    if num_positions <= window:
        return causal_attention(q_BNTH, k_BKTH, v_BKTH, scale=scale)
    block = min(max(window // _BLOCKS_PER_WINDOW, _SMALLEST_BLOCK), window)
    blocks_back = -(-(window - 1) // block)
    mask = _window_mask(block, blocks_back, window, q_BNTH.device, q_BNTH.dtype)
    q_blocks, k_blocks, v_blocks = (torch.split(x, block, dim=2) for x in (q_BNTH, k_BKTH, v_BKTH))
    outputs = []
    for i, q_BNQH in enumerate(q_blocks):
        reach = slice(max(0, i - blocks_back), i + 1)
        k, v = torch.cat(k_blocks[reach], dim=2), torch.cat(v_blocks[reach], dim=2)
        # The first blocks have fewer key blocks before them, and the last block may be short: both use a corner of the mask.
        rows, behind = q_BNQH.shape[2], min(i, blocks_back) * block
        corner = mask[:rows, blocks_back * block - behind : blocks_back * block + rows]
        outputs.append(_attend(q_BNQH, k, v, None if i == 0 else corner, scale))
    return torch.cat(outputs, dim=2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    num_groups = q.shape[1] // k.shape[1]
    if num_groups > 1 and q.device.type != "cpu":
        # On older GPUs and PyTorch builds the fused kernels do not support shared heads, and the fallback would keep all
        # scores in memory. So we copy the heads there. The CPU's fused kernel supports them without copies.
        k, v = (x.repeat_interleave(num_groups, dim=1) for x in (k, v))
        num_groups = 1
    return functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=num_groups > 1
    )


def _window_mask(block: int, blocks_back: int, window: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the mask that is added to a block's scores: 0 for a visible key, -inf for others.

    Rows are the block's queries, columns the keys of the `blocks_back` blocks before it and of the block itself.
    """
    query = torch.arange(block, device=device)[:, None] + blocks_back * block
    key = torch.arange((blocks_back + 1) * block, device=device)
    visible = (key <= query) & (key > query - window)
    return torch.zeros(visible.shape, device=device, dtype=dtype).masked_fill_(~visible, float("-inf"))
