"""`TritonOps` beside `TorchOps`, by the methods of the face: each takes the kernel that its rows ask for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kvasir.backends.cuda.kernels import common
from kvasir.backends.cuda.kernels.torch_ops import TorchOps
from kvasir.backends.cuda.kernels.triton_ops import TritonOps
from kvasir.backends.cuda.weights import Dense, to_fp8
from tests.cuda.interpreted import check_codes
from tests.cuda.interpreted.check_attend import TOLD, Case
from tests.cuda.interpreted.poison import Poisoned


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that run."""
    names: list[str] = []
    run = common.Call.run

    def noted(self: common.Call) -> None:
        names.append(self.kernel.__name__)
        run(self)

    monkeypatch.setattr(common.Call, "run", noted)
    return names


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def both(method: str, rows: int, width: int, *before: object, after: tuple[object, ...] = ()) -> None:
    wanted, got = torch.empty(rows, width), Poisoned(rows, width, torch.float32)
    getattr(TorchOps(), method)(*before, *after, wanted)
    getattr(TritonOps(), method)(*before, *after, got.view)
    got.holds(wanted.numpy())


def test_products_take_the_kernel_for_their_rows(launched):
    dense, bias = Dense(drawn(10, 64, seed=1) / 8), drawn(10, seed=2)
    kernels = {1: "matvec_kernel", 4: "matvec_kernel"}
    for weight in (dense, to_fp8(dense)):
        for rows, kernel in kernels.items():
            launched.clear()
            both("product", rows, 10, drawn(rows, 64), weight, bias)
            both("gated", rows, 5, drawn(rows, 64), weight, bias, "silu", 0.0, torch.empty(rows, 10))
            assert launched == [kernel, kernel]
    _, w, codes = check_codes.made("Q4_0", 10)
    launched.clear()
    x = torch.from_numpy(check_codes.scaled(w))
    both("product", 2, 10, x[:2], codes, bias)
    both("gated", 2, 5, x[:2], codes, bias, "silu", 1.0, torch.empty(2, 10))
    assert launched == ["matvec_codes_kernel"] * 2
    launched.clear()
    both("gated", 7, 5, drawn(7, 64), dense, bias, "silu", 0.0, torch.empty(7, 10))
    assert launched[-1] == "elementwise_kernel"


def test_rows_one_by_one(launched):
    x, y, w = drawn(3, 40), drawn(3, 40, seed=1), drawn(40, seed=2)
    both("norm", 3, 40, x, w, None, 1e-6, 1, False)
    both("norm", 3, 40, x, w, w, 1e-6, 1, True)
    both("l2norm", 3, 40, x, 5, 1e-6)
    both("add_norm", 3, 40, x, y, w, None, 1e-6, False, torch.empty(3, 40))
    both("add", 3, 40, x, y)
    both("mul", 3, 40, x, y[:, :4])
    both("scale", 3, 40, x, 0.7)
    both("softcap", 3, 40, x, 2.0)
    both("act", 3, 40, x, "gelu")
    both("glu", 3, 40, x, y, "silu", 0.5)
    both("copy", 3, 40, x)
    assert set(launched) == {"norm_kernel", "elementwise_kernel"} and len(launched) == 11


@pytest.mark.parametrize("rows", [(1, 1), (3, 20)])
def test_attention(launched, rows):
    case = Case((17, 40), rows, torch.float32)
    step, cache, other = case.step(), case.cache(), case.cache()
    q, k, v = (torch.from_numpy(x) for x in (case.q, case.k, case.v))
    norms = 1 + drawn(20), 1 + drawn(20, seed=1)
    q_out, wanted = torch.empty_like(q), torch.empty_like(q)
    TorchOps().attend_inputs(q, k, v, *norms, 1e-6, None, 6, 2, step, other, wanted, None)
    TritonOps().attend_inputs(q, k, v, *norms, 1e-6, None, 6, 2, step, cache, q_out, None)
    torch.testing.assert_close(q_out, wanted)
    torch.testing.assert_close(cache.k, other.k, equal_nan=True)
    torch.testing.assert_close(cache.v, other.v, equal_nan=True)
    both("attend", len(q), 72, q_out, cache, step, TOLD["capped"])
    both("attend_fresh", len(q), 72, q, k, v, step, TOLD["plain"])
    assert launched == ["inputs_kernel", "decode_kernel" if rows == (1, 1) else "pieces_kernel"]
