"""Trains mead or its draft model on the corpus: `python -m training.train --model mead --minutes 75`.

Muon for the matrices of the layers, AdamW for the rest; the rate rises over the first hundredth of the budget
and falls as a cosine to zero at its end. The budget is steps (the same weights each time on the same machine)
or minutes (as many steps as fit).
"""

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import batches
from training.corpus import read_corpus, read_heldout
from training.model import SHAPES, Model, n_parameters
from training.muon import Muon
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
    optimizer: str


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


def optimizers_for(model: Model, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon over the matrices of the layers and AdamW over the rest, or AdamW over all; norms do not decay."""
    muon = recipe.optimizer == "muon"
    inner = [w for w in model.layers.parameters() if w.dim() == 2 and muon]
    taken = {id(w) for w in inner}
    outer = [w for w in model.parameters() if w.dim() == 2 and id(w) not in taken]
    norms = [w for w in model.parameters() if w.dim() < 2]
    groups = [{"params": outer, "weight_decay": recipe.decay}, {"params": norms, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), eps=1e-9, fused=True)
    return [Muon(inner, recipe.rate, 0.95, recipe.decay), adam] if muon else [adam]


def save(
    path: Path, model: Model, optimizers: list[torch.optim.Optimizer], state: State, recipe: Recipe
) -> None:
    """Writes a checkpoint beside the old one, then puts it in its place."""
    part = path.with_suffix(".part")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizers": [each.state_dict() for each in optimizers],
            "state": asdict(state),
            "recipe": asdict(recipe),
            "shape": asdict(model.shape),
        },
        part,
    )
    os.replace(part, path)


def one_step(
    model: Model, optimizers: list[torch.optim.Optimizer], parts: list[batches.Batch], loss_of: LossOf
) -> float:
    """Gradients over all parts, one update; the mean loss in nats a weighted token."""
    total = sum(float(part.weights.sum()) for part in parts)
    loss = 0.0
    for part in parts:
        part_loss = loss_of(part.tokens, part.targets, part.weights) / total
        torch.autograd.backward(part_loss)
        loss += float(part_loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss


def report(state: State, recipe: Recipe, rate: float, tokens_a_s: float) -> None:
    """One line of progress."""
    done = max(state.done(recipe), 1e-9)
    left_s = state.elapsed_s / done * (1 - done)
    print(
        f"step {state.step:6}  {done:6.1%}  loss {state.loss:.4f}  rate {rate:.2e}  "
        f"{tokens_a_s:6.0f} tokens/s  {state.n_tokens / 1e6:.2f} M tokens  {left_s / 60:.1f} min left",
        flush=True,
    )


def run(
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    feed: Iterator[list[batches.Batch]],
    recipe: Recipe,
    state: State,
    path: Path,
    loss_of: LossOf,
) -> None:
    """Steps until the budget is used; saves every two minutes and at the end."""
    begin = time.monotonic() - state.elapsed_s
    last_report, last_save, seen = state.elapsed_s, state.elapsed_s, state.n_tokens
    while state.done(recipe) < 1:
        rate = rate_at(state.done(recipe), recipe.rate)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        parts = next(feed)
        loss = one_step(model, optimizers, parts, loss_of)
        state.loss = loss if math.isnan(state.loss) else 0.98 * state.loss + 0.02 * loss
        state.step += 1
        state.n_tokens += sum(part.n_tokens for part in parts)
        state.elapsed_s = time.monotonic() - begin
        if state.elapsed_s - last_report > REPORT_S:
            report(state, recipe, rate, (state.n_tokens - seen) / (state.elapsed_s - last_report))
            last_report, seen = state.elapsed_s, state.n_tokens
        if state.elapsed_s - last_save > SAVE_S:
            save(path, model, optimizers, state, recipe)
            last_save = state.elapsed_s
    save(path, model, optimizers, state, recipe)


def resumed(recipe: Recipe, saved: dict[str, Any]) -> Recipe:
    """The recipe of the checkpoint with the budget of the new one; without a name its optimizer is AdamW."""
    old = {"optimizer": "adamw", **saved["recipe"]}
    return replace(Recipe(**old), n_steps=recipe.n_steps, minutes=recipe.minutes)


def start(recipe: Recipe, path: Path, resume: bool, compile_it: bool) -> None:
    """Sets up a run, or takes up a broken one, and runs it to its end."""
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(recipe.seed)
    saved = torch.load(path, weights_only=True) if resume else None
    recipe = resumed(recipe, saved) if saved else recipe
    model = Model(SHAPES[recipe.model])
    optimizers = optimizers_for(model, recipe)
    state = State()
    if saved:
        model.load_state_dict(saved["model"])
        held = saved["optimizers"] if "optimizers" in saved else [saved["optimizer"]]
        for optimizer, content in zip(optimizers, held, strict=True):
            optimizer.load_state_dict(content)
        state = State(**saved["state"])
    banned = frozenset(normalized(check.question) for check in read_heldout())
    sampler = Sampler(read_corpus(), banned, recipe.seed + state.step)
    print(f"{recipe}\n{n_parameters(model)} parameters, {len(banned)} questions held out", flush=True)
    print("shares of rows:", sampler.shares(), flush=True)
    feed = batches.steps(sampler, load(), model.shape.n_context, recipe.n_tokens, recipe.n_parts, recipe.seed)
    loss_of: LossOf = torch.compile(model.loss, dynamic=True) if compile_it else model.loss
    run(model, optimizers, feed, recipe, state, path, loss_of)
    print(
        f"done: {state.step} steps, {state.n_tokens / 1e6:.2f} M tokens, {state.elapsed_s / 60:.1f} min, "
        f"loss {state.loss:.4f}; {len(sampler.dropped)} records never shown (held out)"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=SHAPES, default="mead")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float)
    budget.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint", type=Path, help="default: training/out/MODEL.pt")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, by its recipe")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=4e-3, help="peak learning rate; 2e-3 for AdamW")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--parts", type=int, default=2, help="batches a step, each of its own row length")
    parser.add_argument("--compile", action="store_true", help="torch.compile the loss")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    minutes = args.minutes or (None if args.steps else 75.0)
    recipe = Recipe(
        args.model, args.steps, minutes, args.rate, args.tokens, args.parts, 0.05, args.seed, args.optimizer
    )
    start(recipe, args.checkpoint or OUT / f"{args.model}.pt", args.resume, args.compile)


if __name__ == "__main__":
    main()
