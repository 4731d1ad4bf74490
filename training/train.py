"""Trains mead or its draft model on the corpus: `python -m training.train --model mead --minutes 75`.

AdamW, the rate rising over the first hundredth of the budget and falling as a cosine to zero at its end. The
budget is steps (the same weights each time on the same machine) or minutes (as many steps as fit).
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from training import batches
from training.corpus import read_corpus, read_heldout
from training.model import SHAPES, Model, n_parameters
from training.phrasing import normalized
from training.samples import Sampler
from training.tokenizer import OUT, load

LossOf = Callable[[Tensor, Tensor, Tensor], Tensor]
REPORT_S, SAVE_S = 20.0, 120.0


@dataclass(frozen=True)
class Recipe:
    """What one run of training is asked for."""

    model: str
    n_steps: int | None
    minutes: float | None
    rate: float
    n_tokens: int
    n_parts: int
    decay: float
    seed: int


@dataclass
class State:
    """How far a run has come. Mutable."""

    step: int = 0
    elapsed_s: float = 0.0
    n_tokens: int = 0
    loss: float = math.nan

    def done(self, recipe: Recipe) -> float:
        """The share of the budget that is used."""
        if recipe.n_steps:
            return self.step / recipe.n_steps
        return self.elapsed_s / 60 / (recipe.minutes or 1)


def rate_at(done: float, peak: float) -> float:
    """The learning rate when `done` (0 to 1) of the budget is used."""
    warm = 0.01
    if done < warm:
        return peak * (0.05 + 0.95 * done / warm)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warm) / (1 - warm))))


def optimizer_for(model: Model, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; only matrices decay, norms do not."""
    matrices = [w for w in model.parameters() if w.dim() == 2]
    vectors = [w for w in model.parameters() if w.dim() < 2]
    groups = [{"params": matrices, "weight_decay": recipe.decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), eps=1e-9, fused=True)


def save(path: Path, model: Model, optimizer: torch.optim.AdamW, state: State, recipe: Recipe) -> None:
    """Writes a checkpoint beside the old one, then puts it in its place."""
    part = path.with_suffix(".part")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "state": asdict(state),
                "recipe": asdict(recipe), "shape": asdict(model.shape)}, part)
    os.replace(part, path)


def one_step(model: Model, optimizer: torch.optim.AdamW, parts: list[batches.Batch],
             loss_of: LossOf) -> float:
    """Gradients over all parts, one update; the mean loss in nats a weighted token."""
    total = sum(float(part.weights.sum()) for part in parts)
    loss = 0.0
    for part in parts:
        part_loss = loss_of(part.tokens, part.targets, part.weights) / total
        torch.autograd.backward(part_loss)
        loss += float(part_loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss


def report(state: State, recipe: Recipe, rate: float, tokens_a_s: float) -> None:
    """One line of progress."""
    done = max(state.done(recipe), 1e-9)
    left_s = state.elapsed_s / done * (1 - done)
    print(f"step {state.step:6}  {done:6.1%}  loss {state.loss:.4f}  rate {rate:.2e}  "
          f"{tokens_a_s:6.0f} tokens/s  {state.n_tokens / 1e6:.2f} M tokens  {left_s / 60:.1f} min left",
          flush=True)


def run(model: Model, optimizer: torch.optim.AdamW, feed: Iterator[list[batches.Batch]], recipe: Recipe,
        state: State, path: Path, loss_of: LossOf) -> None:
    """Steps until the budget is used; saves every two minutes and at the end."""
    begin = time.monotonic() - state.elapsed_s
    last_report, last_save, seen = state.elapsed_s, state.elapsed_s, state.n_tokens
    while state.done(recipe) < 1:
        rate = rate_at(state.done(recipe), recipe.rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = next(feed)
        loss = one_step(model, optimizer, parts, loss_of)
        state.loss = loss if math.isnan(state.loss) else 0.98 * state.loss + 0.02 * loss
        state.step += 1
        state.n_tokens += sum(part.n_tokens for part in parts)
        state.elapsed_s = time.monotonic() - begin
        if state.elapsed_s - last_report > REPORT_S:
            report(state, recipe, rate, (state.n_tokens - seen) / (state.elapsed_s - last_report))
            last_report, seen = state.elapsed_s, state.n_tokens
        if state.elapsed_s - last_save > SAVE_S:
            save(path, model, optimizer, state, recipe)
            last_save = state.elapsed_s
    save(path, model, optimizer, state, recipe)


def start(recipe: Recipe, resume: bool, compile_it: bool) -> None:
    """Sets up a run, or takes up a broken one, and runs it to its end."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{recipe.model}.pt"
    torch.manual_seed(recipe.seed)
    model = Model(SHAPES[recipe.model])
    optimizer = optimizer_for(model, recipe)
    state = State()
    if resume:
        saved = torch.load(path, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = State(**saved["state"])
    banned = frozenset(normalized(check.question) for check in read_heldout())
    sampler = Sampler(read_corpus(), banned, recipe.seed + state.step)
    print(f"{recipe}\n{n_parameters(model)} parameters, {len(banned)} questions held out", flush=True)
    print("shares of rows:", sampler.shares(), flush=True)
    feed = batches.steps(sampler, load(), model.shape.n_context, recipe.n_tokens, recipe.n_parts, recipe.seed)
    loss_of: LossOf = torch.compile(model.loss, dynamic=True) if compile_it else model.loss
    run(model, optimizer, feed, recipe, state, path, loss_of)
    print(f"done: {state.step} steps, {state.n_tokens / 1e6:.2f} M tokens, {state.elapsed_s / 60:.1f} min, "
          f"loss {state.loss:.4f}; {len(sampler.dropped)} records never shown (held out)")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="mead")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--resume", action="store_true", help="go on from training/out/MODEL.pt")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--parts", type=int, default=2, help="batches a step, each of its own row length")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    minutes = args.minutes or (None if args.steps else 75.0)
    recipe = Recipe(args.model, args.steps, minutes, args.rate, args.tokens, args.parts, 0.05, args.seed)
    start(recipe, args.resume, args.compile)


if __name__ == "__main__":
    main()
