"""Adapters brought to a plan: which product each of their matrices belongs to, with its rows as the plan has
them.

An adapter is written for the tensors of a file, and a plan's weight may be some of a tensor's rows, or all
of them in another order.  The recipes of the adapter's own kind of file know which: they are run on tensors
whose every row (or column) holds its number.  So an adapter of either kind fits a model of either kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from kvasir.checkpoint.adapters import AdapterFile
from kvasir.checkpoint.config import Config
from kvasir.checkpoint.recipes import Indices, Missing, Part, Recipes, Source, bare, find, log, pick
from kvasir.checkpoint.tensor import LowRank, Tensor
from kvasir.errors import CheckpointError, UsageError
from kvasir.models import FAMILIES, inner
from kvasir.plan import Plan, ops
from kvasir.quant.formats import F32


def fit_adapter(file: AdapterFile, config: Config, plan: Plan) -> dict[str, LowRank]:
    """What the adapter adds to each product of a plan that was built from `config`, by the product's weight.

    Raises UsageError for a model that takes none, CheckpointError for an adapter of another model: another
    architecture, a matrix that no product reads, or one of another shape.
    """
    if plan.output is None or plan.output.rows == "N":
        raise UsageError(f"{plan.name} is an embedding model, and adapters are for models that write text")
    family = FAMILIES[config.architecture]
    # One plan may have several families' names for its weights: GGUF calls Mixtral a llama.
    kin = {id(f): f for f in FAMILIES.values() if f.plan is family.plan}.values()
    c = inner(config)
    if file.kind == "gguf":
        if FAMILIES.get(file.architecture) not in kin:
            raise _other(file, f"it is for {file.architecture!r} and the model is {config.architecture!r}")
        targets, names = dict(file.targets), [(f.gguf(c), "blk.{}.") for f in kin]
    else:
        targets, names = bare(file.targets), [(f.safetensors(c), f.layers) for f in kin]
    fitted, used = dict[str, LowRank](), set[str]()
    probe = Probe(targets, names)
    for op in (op for op in plan.ops if isinstance(op, ops.Linear)):
        # A tied output is the embedding's table; an adapter for it means the product alone.
        name = "output" if op.weight.name == "token_embd" else op.weight.name
        if found := probe.find(file, name):
            used.add(found[0])
            fitted[op.weight.name] = _placed(file, found, targets[found[0]], op)
    _all_used(file, set(targets) - used, family.set_aside(c))
    if not fitted:
        raise _other(file, "no product of the model is touched")
    return fitted


Found = tuple[str, Indices, Indices]  # a target, and which of its rows and columns, in which order


class Probe:
    """Runs recipes on tensors of numbers, to see where they take rows and columns from."""

    def __init__(self, targets: Mapping[str, LowRank], names: Sequence[tuple[Recipes, str]]):
        """`names`: recipes, and how a layer's tensors begin, of each kind of file the targets may be named
        for.
        """
        self.targets, self.names = targets, names
        self.tall = {name: _numbers(name, low.b.shape[0], 1) for name, low in targets.items()}
        self.wide = {name: _numbers(name, 1, low.a.shape[1]) for name, low in targets.items()}

    def find(self, file: AdapterFile, name: str) -> Found | None:
        """Where the weight `name` comes from; None if the adapter leaves it alone."""
        try:
            part, target = self._run(self.tall, name)
            low = self.targets[target]
            rows, columns = np.arange(low.b.shape[0]), np.arange(low.a.shape[1])
            if part.shape[1] == 1:
                rows = part.floats().astype(np.intp).ravel()
            else:
                columns = self._run(self.wide, name)[0].floats().astype(np.intp).ravel()
        except Missing:
            return None
        except IndexError:
            raise _other(file, f"its matrix for {name} has too few rows or columns") from None
        return target, rows, columns

    def _run(self, numbers: Mapping[str, Tensor], name: str) -> tuple[Part, str]:
        for recipes, layers in self.names:
            source = Source(numbers)
            try:
                part = find(name, recipes, source, layers)
            except Missing:
                continue
            (target,) = source.used  # no product's weight is made of several tensors
            return part, target
        raise Missing(name)


def _numbers(name: str, rows: int, columns: int) -> Tensor:
    raw = np.arange(rows * columns, dtype=np.float32).view(np.uint8).reshape(rows, -1)
    return Tensor(name, F32, (rows, columns), raw)


def _placed(file: AdapterFile, found: Found, low: LowRank, op: ops.Linear) -> LowRank:
    """The target's pair as the product wants it.  Raises CheckpointError for another shape."""
    target, rows, columns = found
    shape, wanted = (len(rows), len(columns)), op.weight.shape
    if shape != wanted:
        raise _other(file, f"{target} is {list(shape)} there and {list(wanted)} in the model")
    b = low.b if _in_order(rows, low.b.shape[0]) else pick(Part.of(low.b), rows).tensor(low.b.name)
    a = low.a if _in_order(columns, low.a.shape[1]) else pick(Part.of(low.a), columns, 1).tensor(low.a.name)
    return LowRank(a, b, low.scale)


def _in_order(index: Indices, n: int) -> bool:
    return bool(np.array_equal(index, np.arange(n)))


def _all_used(file: AdapterFile, unused: set[str], set_aside: str) -> None:
    aside = {n for n in unused if set_aside and re.match(set_aside, n)}
    if aside:
        log.warning(
            "%d matrices of the adapter %s are not run: %s, ...", len(aside), file.path.name, min(aside)
        )
    left = sorted(unused - aside)
    if not left:
        return
    first = left[0]
    if any(mark in first for mark in ("embed_tokens", "token_embd")):
        raise CheckpointError(f"{file.path.name}: {first}: trained embeddings are not implemented",
                              hint="merge the adapter into its base model and run that")  # fmt: skip
    if "exps" in first or ".experts." in first:
        raise CheckpointError(f"{file.path.name}: {first}: adapters of experts are not implemented",
                              hint="merge the adapter into its base model and run that")  # fmt: skip
    more = f" and {len(left) - 1} more are" if len(left) > 1 else " is"
    raise _other(file, f"{first}{more} not in the model")


def _other(file: AdapterFile, what: str) -> CheckpointError:
    return CheckpointError(f"{file.path.name}: the adapter does not fit the model: {what}",
                           hint="use it with the model that it was trained on")  # fmt: skip
