"""Rows of tokens for a training step: one conversation a row, rows alike in length, padded at the end."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.chat import WRITE_WEIGHT, pieces
from training.samples import Sample, Sampler

POOL_ROWS = 1600
SKIP = 5


@dataclass(frozen=True)
class Row:
    """One conversation: token ids, and the weight in the loss of each token as something to be foretold."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True)
class Batch:
    """Rows side by side, [N, L] each: what is read, what comes next, and its weight (0 at padding).

    n_tokens counts them without padding.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    n_tokens: int


def encode(sample: Sample, tokenizer: Tokenizer, n_context: int) -> Row:
    """The conversation's tokens, cut at n_context + 1 (the last one is only foretold)."""
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces(sample.messages, sample.tools):
        found = tokenizer.encode(piece.text, add_special_tokens=False).ids
        ids += found
        weights += [piece.weight] * len(found)
    return Row(ids[: n_context + 1], weights[: n_context + 1])


def stack(rows: list[Row], multiple: int) -> Batch:
    """The rows padded to one length, a multiple of `multiple`."""
    longest = max(len(row.ids) for row in rows) - 1
    length = -(-longest // multiple) * multiple
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    targets = torch.zeros(len(rows), length, dtype=torch.long)
    weights = torch.zeros(len(rows), length)
    for i, row in enumerate(rows):
        n = len(row.ids) - 1
        tokens[i, :n] = torch.tensor(row.ids[:-1])
        targets[i, :n] = torch.tensor(row.ids[1:])
        weights[i, :n] = torch.tensor(row.weights[1:])
    return Batch(tokens, targets, weights, sum(len(row.ids) - 1 for row in rows))


def thinned(row: Row, rng: random.Random) -> Row:
    """The row with the loss of what is only read taken at one token in five, at five times its weight.

    The mean is the same, and the others need no logits.
    """
    weights = [w if w == WRITE_WEIGHT else w * SKIP if rng.random() * SKIP < 1 else 0.0 for w in row.weights]
    return Row(row.ids, weights)


def cut(rows: list[Row], n_tokens: int, multiple: int) -> list[Batch]:
    """The rows in batches of about n_tokens each, sorted by length so that little is padding."""
    made: list[Batch] = []
    waiting: list[Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if waiting and len(row.ids) * (len(waiting) + 1) > n_tokens:
            made.append(stack(waiting, multiple))
            waiting = []
        waiting.append(row)
    return [*made, stack(waiting, multiple)]


def steps(
    sampler: Sampler, tokenizer: Tokenizer, n_context: int, n_tokens: int, n_parts: int, seed: int
) -> Iterator[list[Batch]]:
    """Endless training steps: n_parts batches of different lengths, n_tokens in all."""
    rng = random.Random(seed)
    while True:
        rows = [thinned(encode(sampler.draw(), tokenizer, n_context), rng) for _ in range(POOL_ROWS)]
        batches = cut(rows, n_tokens // n_parts, multiple=8)
        rng.shuffle(batches)
        for first in range(0, len(batches) - n_parts + 1, n_parts):
            yield batches[first : first + n_parts]
