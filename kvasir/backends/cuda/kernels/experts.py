"""Which rows go to which expert, sorted on the device without the host looking: what `rows.some_rows` takes.

A row and one of its k experts are a pair; pair t * k + j is the j-th expert of row t in the order of their
numbers, so that a row's answers are added in that order.  Pairs of one expert lie next to each other in
blocks of `block` rows; the number of blocks is bounded by the shapes alone, and those left over are empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sorted:
    """pairs [n_blocks * block] int32 (-1: none), block_expert [n_blocks] int32, share [T, k] float32."""

    pairs: torch.Tensor
    block_expert: torch.Tensor
    share: torch.Tensor


def route_rows(scores: torch.Tensor, k: int, route: str) -> tuple[torch.Tensor, torch.Tensor]:
    """scores [T, E] -> the chosen experts [T, k] and what each answer counts [T, k], float32; ties go to the
    lower number: `reference.route`.
    """
    s = scores.float()
    chosen = torch.sort(s, dim=-1, descending=True, stable=True).indices[:, :k]
    if route == "topk_softmax":
        return chosen, torch.softmax(s.gather(1, chosen), -1)
    share = torch.softmax(s, -1).gather(1, chosen)
    return chosen, share / share.sum(-1, keepdim=True) if route == "softmax_renorm" else share


def sort_pairs(scores: torch.Tensor, k: int, route: str, block: int) -> Sorted:
    """scores [T, E] -> the pairs by expert and what each answer counts: `reference.route`."""
    rows, n_experts = scores.shape
    chosen, share = route_rows(scores, k, route)
    chosen, order = torch.sort(chosen, -1)
    flat = chosen.flatten()
    counts = torch.zeros(n_experts, dtype=torch.int64, device=scores.device).scatter_add_(
        0, flat, torch.ones_like(flat)
    )
    blocks = (counts + block - 1) // block
    ends, before = blocks.cumsum(0), counts.cumsum(0) - counts
    by_expert, of = torch.sort(flat, stable=True)
    rank = torch.arange(len(flat), device=scores.device) - before[by_expert]
    place = (ends - blocks)[by_expert] * block + rank
    most = min(rows * k, -(-rows * k // block) + n_experts)
    pairs = torch.full((most * block,), -1, dtype=torch.int32, device=scores.device)
    pairs.scatter_(0, place, of.int())
    numbers = torch.arange(most, device=scores.device)
    whose = torch.searchsorted(ends, numbers, right=True).clamp(max=n_experts - 1)
    return Sorted(pairs, whose.int(), share.gather(1, order))
