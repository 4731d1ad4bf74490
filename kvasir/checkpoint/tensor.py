"""A tensor as it lies in a file: rows of encoded bytes, mapped, with the format that says what they mean."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvasir.quant.formats import Format
from kvasir.records import dataclass


@dataclass(frozen=True)
class Tensor:
    """`shape` in numpy's order (outputs first); `raw` is uint8 [rows, bytes of one row], a view of the file.

    rows = prod(shape[:-1]).  The view may begin at any address: nothing about its alignment is promised.
    Every format encodes a row by itself, so rows may be cut, permuted and stacked without decoding them.
    """

    name: str
    format: Format
    shape: tuple[int, ...]
    raw: npt.NDArray[np.uint8]

    def floats(self) -> npt.NDArray[np.float32]:
        """Decoded to float32, in `shape`."""
        return self.format.decode(self.raw, self.shape[-1]).reshape(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.raw.size


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to a product: scale B A of a: [r, D], b: [O, r], each F32, F16 or BF16."""

    a: Tensor
    b: Tensor
    scale: float

    @property
    def n_bytes(self) -> int:
        return self.a.n_bytes + self.b.n_bytes
