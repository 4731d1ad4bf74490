"""`kvasir show MODEL`: what it is, its plan, and what this machine would allow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from kvasir.api.catalog import modelfile
from kvasir.backends.cpu import kernels
from kvasir.backends.cpu_threads import cores
from kvasir.backends.packed import cache_folder, kept_bytes
from kvasir.checkpoint.open import open_checkpoint
from kvasir.cli.parser import Parser
from kvasir.errors import ModelError, UsageError
from kvasir.models import build
from kvasir.plan.show import roofline, show
from kvasir.runner.device import where
from kvasir.runner.inspect import ModelInfo, describe
from kvasir.runner.prompt import template_source
from kvasir.settings import Settings
from kvasir.store.made import Made
from kvasir.store.modelfile import parameters_text
from kvasir.store.names import find

MAX_SHOWN = 60  # characters of a metadata value
SWEEP_MB = 256  # larger than any cache, small enough to be quick


def command(words: Sequence[str], settings: Settings) -> int:
    """Runs the command.  Raises ModelError, CheckpointError."""
    it = Parser("show", "What a model is.")
    it.add_argument("model", help="a name from `kvasir list`, a GGUF file, or a folder with safetensors")
    it.add_argument("--plan", action="store_true", help="the plan: its ops in order, equal layers folded")
    it.add_argument(
        "--roofline", action="store_true", help="bytes and multiply-adds of a token; what this machine allows"
    )
    it.add_argument("--past", type=int, default=0, metavar="N", help="tokens behind the one that is counted")
    it.add_argument("--template", action="store_true", help="the chat template")
    it.add_argument("--license", action="store_true", help="the license")
    it.add_argument("--parameters", action="store_true", help="the model's own sampling parameters")
    it.add_argument("--system", action="store_true", help="the model's own system message")
    it.add_argument("--modelfile", action="store_true", help="the Modelfile that makes it again")
    it.add_argument("-v", "--verbose", action="store_true", help="its metadata and tensors too")
    values = it.read(words)
    asked = [n for n in ("template", "license", "parameters", "system", "modelfile") if getattr(values, n)]
    if len(asked) > 1:
        raise UsageError(f"--{' and --'.join(asked)} were both given", hint="ask for one at a time")
    if asked:
        print(_part(values.model, asked[0]))
    elif values.plan or values.roofline:
        if not 0 <= values.past < 2**31:
            raise UsageError("--past must be a number of tokens from 0")
        print("\n\n".join(_costs(values, settings)))
    else:
        print(
            summary(describe(values.model), where(*build(open_checkpoint(find(values.model).path)), settings))
        )
        if values.verbose:
            print(_details(values.model))
    return 0


def _costs(values: argparse.Namespace, settings: Settings) -> list[str]:
    """The plan, and what memory allows: as many threads read a buffer larger than the caches."""
    plan, weights = build(open_checkpoint(find(values.model).path))
    sizes, told = weights.sizes(), []
    if values.plan:
        told.append(show(plan, sizes, values.past, settings.kv))
    if values.roofline:
        threads = min(settings.threads or cores(), cores())
        bandwidth = max(kernels().bandwidth(SWEEP_MB, threads))
        told.append(roofline(plan, sizes, values.past, bandwidth, kv=settings.kv))
    return told


def summary(info: ModelInfo, runs_on: str = "") -> str:
    """What the model is, in Ollama's sections."""
    model = {
        "architecture": info.architecture,
        "parameters": info.parameter_size,
        "context length": str(info.context),
        "embedding length": str(info.embedding_length),
        "quantization": info.quantization,
        "file": str(info.path),
    }
    kept = kept_bytes(info.path)
    if kept:
        model["repacked"] = f"{kept / 1e6:,.0f} MB in {cache_folder()} (KVASIR_PACKED_GB)"
    if runs_on:
        model["processor"] = runs_on
    lines = ["  Model", *(f"    {name:<20}{value}" for name, value in model.items()), ""]
    lines += ["  Capabilities", *(f"    {name}" for name in info.capabilities), ""]
    made = info.made
    if made and made.parameters:
        own = parameters_text(made.parameters).splitlines()
        lines += ["  Parameters", *(f"    {line}" for line in own), ""]
    if made and made.system:
        lines += ["  System", *(f"    {line}" for line in made.system.splitlines()[:3]), ""]
    if info.license:
        lines += ["  License", *(f"    {line}" for line in info.license.splitlines()[:3]), ""]
    return "\n".join(lines)


def _part(name: str, part: str) -> str:
    """One thing of a model, as text.  Raises ModelError for a template that it lacks."""
    file, info = find(name), describe(name)
    made = file.made or Made("")
    if part == "template":
        template = made.template or template_source(open_checkpoint(file.path))
        if template is None:
            raise ModelError(f"{name} has no chat template")
        return template
    texts = {
        "license": info.license or "no license is recorded",
        "parameters": parameters_text(made.parameters) or "the model brings no sampling parameters",
        "system": made.system or "the model brings no system message",
        "modelfile": modelfile(info).rstrip("\n"),
    }
    return texts[part]


def _details(name: str) -> str:
    """Metadata and tensors, a line each; of a long list the beginning."""
    checkpoint = open_checkpoint(find(name).path)
    lines = ["  Metadata"]
    for key, value in checkpoint.metadata.items():
        told = str(value).replace("\n", "\\n")
        lines.append(f"    {key:<45}{told if len(told) <= MAX_SHOWN else told[:MAX_SHOWN] + '...'}")
    lines += ["", "  Tensors"]
    for key, tensor in checkpoint.tensors.items():
        lines.append(f"    {key:<45}{tensor.format.name:<8}{list(tensor.shape)}")
    return "\n".join(lines) + "\n"
