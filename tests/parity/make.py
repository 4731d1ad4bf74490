"""`python -m tests.parity.make`: makes the tiny checkpoints and Transformers' logits anew, and compares live.

A folder a case in tests/golden: config.json, model.safetensors, and golden.npz with `tokens` and `logits`.
Needs torch and transformers; the tests that read the folders do not.
"""

from __future__ import annotations

import shutil
import sys
import zlib
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from tests.parity.cases import CASES, GOLDEN, N_TOKENS, SMALL, Case
from tests.stepping import compare

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
LIMIT_BYTES = 300_000
CLOSE = 1e-4


def make(name: str, case: Case) -> None:
    """One case's folder."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    config = getattr(transformers, case.config)(**{**SMALL, **case.says})
    model = getattr(transformers, case.model)._from_config(config, attn_implementation="eager").float().eval()
    for key, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(drawn(rng, key, tuple(parameter.shape)))
    packed = pack_experts(rng, model) if case.mxfp4 else {}
    model.tie_weights()
    folder = GOLDEN / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if packed:
        tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if base(k) not in packed}
        save_file({**tensors, **{k: v for both in packed.values() for k, v in both.items()}},
                  folder / "model.safetensors", {"format": "pt"})  # fmt: skip
    tokens = rng.integers(3, config.vocab_size, N_TOKENS).astype(np.int32)
    np.savez_compressed(folder / "golden.npz", tokens=tokens, logits=logits(model, tokens))
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < LIMIT_BYTES, f"{name}: {size} bytes"
    off = compare(name)
    print(f"{name:18} {size / 1000:6.0f} kB  {off:.1e}")
    if not off < CLOSE:
        raise SystemExit(f"{name}: {off:.1e} from the logits of transformers, at most {CLOSE:.0e} is allowed")


def drawn(rng: np.random.Generator, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random weights of a size at which every part of a model shows in its logits."""
    noise = rng.standard_normal(shape).astype(np.float32)
    if "A_log" in key:
        return np.log(np.abs(noise) + 0.2)
    if key.endswith(("norm.weight", "layernorm.weight", "LayerNorm.weight")):
        return 1 + 0.3 * noise
    if len(shape) == 1 or "bias" in key:
        return 0.3 * noise
    if "embed" in key:
        return noise
    fan_in = shape[1] if "experts" in key and "proj" in key and len(shape) == 3 else shape[-1]
    return 1.5 * noise / np.float32(fan_in**0.5)


def base(key: str) -> str:
    return key.removeprefix("model.")


def pack_experts(rng: np.random.Generator, model: Any) -> dict[str, dict[str, np.ndarray]]:
    """Random MXFP4 experts: their tensors by the parameter's name, their floats written into the model."""
    packed = {}
    for key, parameter in model.named_parameters():
        if not key.endswith(("gate_up_proj", "down_proj")):
            continue
        e, n_in, n_out = parameter.shape
        codes = rng.integers(0, 16, (e, n_out, n_in // 32, 32)).astype(np.uint8)
        scales = rng.integers(122, 126, (e, n_out, n_in // 32)).astype(np.uint8)
        floats = FP4[codes] * np.exp2(scales.astype(np.float32) - 127)[..., None]
        parameter.data = torch.from_numpy(floats.reshape(e, n_out, n_in).swapaxes(1, 2).copy())
        blocks = codes[..., ::2] | codes[..., 1::2] << 4
        packed[base(key)] = {f"{key}_blocks": blocks, f"{key}_scales": scales}
    return packed


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    """[T, V], or for an encoder the mean of its rows [1, D]."""
    with torch.no_grad():
        out = model(torch.from_numpy(tokens.astype(np.int64))[None])
    rows = out.logits[0] if hasattr(out, "logits") else out.last_hidden_state[0].mean(0, keepdim=True)
    return rows.numpy()


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for name, case in CASES.items():
        if not names or name in names:
            make(name, case)


if __name__ == "__main__":
    main(sys.argv[1:])
