"""generationConfig, tools and toolConfig to what a request takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kvasir.api.gemini.body import Function, GenerationConfig, ThinkingConfig, Tool, ToolConfig
from kvasir.api.gemini.schema import json_schema
from kvasir.api.loaded import Loaded
from kvasir.api.options import MAX_STOP_LENGTH, MAX_STOPS
from kvasir.api.words import short
from kvasir.errors import UsageError
from kvasir.sampling import SamplingParams
from kvasir.structured import StructuredOutputsParams

CONFIG = "generationConfig"
SAME = ("temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")  # as we call it
MODES = ("MODE_UNSPECIFIED", "AUTO", "ANY", "NONE", "VALIDATED")
LEVELS = {
    "THINKING_LEVEL_UNSPECIFIED": None,
    "MINIMAL": False,
    "LOW": "low",
    "MEDIUM": "medium",
    "HIGH": "high",
    "XHIGH": "high",
}
MAX_TEMPERATURE = 2.0
MAX_CANDIDATES = 8
JSON_TYPE, ENUM_TYPE, TEXT_TYPE = "application/json", "text/x.enum", "text/plain"


def params(config: GenerationConfig) -> SamplingParams:
    """How tokens are chosen.  Defaults are Gemini's: temperature 1, top-p 0.95, top-k 64.

    Raises UsageError that names the field.
    """
    for name, allowed in (("speechConfig", config.speech_config), ("imageConfig", config.image_config)):
        if allowed:
            raise UsageError(f"{CONFIG}.{name} is not supported: models write text here")
    for modality in config.response_modalities or ():
        if modality.upper() not in ("TEXT", "MODALITY_UNSPECIFIED"):
            raise UsageError(f"{CONFIG}.responseModalities: models write text here, not {short(modality)}")
    _within("temperature", config.temperature, 0, MAX_TEMPERATURE)
    _within("candidateCount", config.candidate_count, 1, MAX_CANDIDATES)
    _within("maxOutputTokens", config.max_output_tokens, 1, 2**31 - 1)
    if config.top_k is not None and config.top_k != int(config.top_k):
        raise UsageError(f"{CONFIG}.topK must be a whole number, got {config.top_k!r}")
    if config.logprobs is not None and not config.response_logprobs:
        raise UsageError(f"{CONFIG}.logprobs needs {CONFIG}.responseLogprobs")
    try:
        return SamplingParams(
            n=config.candidate_count or 1,
            temperature=1.0 if config.temperature is None else config.temperature,
            top_p=0.95 if config.top_p is None else config.top_p,
            top_k=64 if config.top_k is None else int(config.top_k),
            max_tokens=config.max_output_tokens,
            stop=_stops(config.stop_sequences or ()),
            seed=config.seed,
            presence_penalty=config.presence_penalty or 0.0,
            frequency_penalty=config.frequency_penalty or 0.0,
            repeat_last_n=-1,
            logprobs=(config.logprobs or 0) if config.response_logprobs else None,
            structured_outputs=_form(config),
        )
    except UsageError as error:
        raise UsageError(_renamed(error.message), hint=error.hint) from None


def said(config: GenerationConfig) -> frozenset[str]:
    """The names in SamplingParams that a generationConfig gives."""
    given = {name: getattr(config, name) for name in SAME}
    given |= {"max_tokens": config.max_output_tokens, "stop": config.stop_sequences}
    return frozenset(name for name, value in given.items() if value is not None)


def _within(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not low <= value <= high:
        raise UsageError(f"{CONFIG}.{name} must be between {low:g} and {high:g}, got {value!r}")


def _renamed(message: str) -> str:
    """An error of SamplingParams under Google's names."""
    names = {"top_p": "topP", "top_k": "topK", "presence_penalty": "presencePenalty"}
    names |= {"frequency_penalty": "frequencyPenalty", "seed": "seed", "logprobs": "logprobs"}
    first, _, rest = message.partition(" ")
    return f"{CONFIG}.{names[first]} {rest}" if first in names else message


def _stops(given: Sequence[str]) -> tuple[str, ...]:
    if len(given) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in given):
        raise UsageError(
            f"{CONFIG}.stopSequences must hold at most {MAX_STOPS} strings"
            f" of 1 to {MAX_STOP_LENGTH} characters"
        )
    return tuple(given)


def _form(config: GenerationConfig) -> StructuredOutputsParams | None:
    """The form that the answer must have."""
    kind, schema, other = _told(config)
    if schema is not None and other is not None:
        raise UsageError(f"{CONFIG}.responseSchema and responseJsonSchema say the same: give one of them")
    given = json_schema(schema, f"{CONFIG}.responseSchema") if schema is not None else other
    if kind not in (None, "", TEXT_TYPE, JSON_TYPE, ENUM_TYPE):
        raise UsageError(
            f"{CONFIG}.responseMimeType must be {TEXT_TYPE}, {JSON_TYPE} or {ENUM_TYPE},"
            f" got {short(kind or '')}"
        )
    if kind == ENUM_TYPE:
        values = given.get("enum") if isinstance(given, Mapping) else None
        if not isinstance(values, list) or not values or not all(isinstance(v, str) and v for v in values):
            raise UsageError(f"{CONFIG}.responseMimeType {ENUM_TYPE} needs a responseSchema with an enum")
        return StructuredOutputsParams(choice=values)
    if kind != JSON_TYPE:
        if given is not None:
            raise UsageError(f"{CONFIG}.responseSchema needs responseMimeType {JSON_TYPE}")
        return None
    if given is None:
        return StructuredOutputsParams(json_object=True)
    if not isinstance(given, Mapping | bool):
        raise UsageError(f"{CONFIG}.responseJsonSchema must be an object")
    try:
        return StructuredOutputsParams(json=given)
    except UsageError as error:
        reason = error.message.removeprefix("structured_outputs.json: ")
        raise UsageError(f"{CONFIG}.responseSchema: {reason}", hint=error.hint) from None


def _told(config: GenerationConfig) -> tuple[str | None, Mapping[str, Any] | None, Any]:
    """Media type, Google's schema, JSON schema: by the fields for each, or by responseFormat."""
    formats = config.response_format
    if formats is None:
        return config.response_mime_type, config.response_schema, config.response_json_schema
    for each in formats if isinstance(formats, list) else [formats]:
        text = each.get("text") if isinstance(each, Mapping) else None
        if not isinstance(text, Mapping):
            raise UsageError(f"{CONFIG}.responseFormat must be of text: models write text here")
        kind = str(text.get("mimeType") or TEXT_TYPE)
        return (
            {"APPLICATION_JSON": JSON_TYPE, "TEXT_PLAIN": TEXT_TYPE}.get(kind, kind),
            None,
            text.get("schema"),
        )
    return None, None, None


@dataclass(frozen=True)
class Thoughts:
    """What is wished of thinking: None leaves it to the model.  `shown`: thoughts are parts of the answer."""

    wish: bool | str | None = None
    shown: bool = False

    def think(self, model: Loaded) -> bool | str | None:
        """What ChatRequest calls it, for this model."""
        if "thinking" not in model.info.capabilities:
            return None
        return True if self.wish is None else self.wish


def thoughts(config: ThinkingConfig | None) -> tuple[Thoughts, tuple[str, ...]]:
    """The wishes, and warnings about those without effect.  Raises UsageError."""
    if config is None:
        return Thoughts(), ()
    wish: bool | str | None = None
    if config.thinking_level is not None:
        if config.thinking_level.upper() not in LEVELS:
            raise UsageError(f"{CONFIG}.thinkingConfig.thinkingLevel must be one of {', '.join(LEVELS)}")
        wish = LEVELS[config.thinking_level.upper()]
    budget = config.thinking_budget
    if budget is not None and budget < -1:
        raise UsageError(f"{CONFIG}.thinkingConfig.thinkingBudget must be -1 or more, got {budget}")
    if budget is not None and config.thinking_level is not None:
        raise UsageError(f"{CONFIG}.thinkingConfig: give thinkingBudget or thinkingLevel, not both")
    if budget is not None:
        wish = budget != 0
    why = "maxOutputTokens bounds thoughts and answer together"
    told = (f"{CONFIG}.thinkingConfig.thinkingBudget has no effect but 0 and -1: {why}",)
    return Thoughts(wish, bool(config.include_thoughts)), told if (budget or 0) > 0 else ()


def functions(tools: Sequence[Tool]) -> tuple[dict[str, Any], ...]:
    """The tools in the shape of ChatRequest.  Raises UsageError for those that run at Google."""
    found: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(tools):
        for name in tool.__struct_fields__:
            if name != "function_declarations" and getattr(tool, name) is not None:
                called = dict(zip(tool.__struct_fields__, tool.__struct_encode_fields__, strict=True))[name]
                raise UsageError(
                    f"tools[{i}].{called} is not supported: it runs at Google",
                    hint="declare functions of your own",
                )
        for j, function in enumerate(tool.function_declarations or ()):
            where = f"tools[{i}].functionDeclarations[{j}]"
            if not function.name or function.name in found:
                raise UsageError(f"{where}.name must be a name of its own, got {short(function.name)}")
            found[function.name] = _function(function, where)
    return tuple(found.values())


def _function(function: Function, where: str) -> dict[str, Any]:
    schema = function.parameters_json_schema
    if function.parameters is not None and schema is not None:
        raise UsageError(f"{where}: give parameters or parametersJsonSchema, not both")
    if schema is not None and not isinstance(schema, dict):
        raise UsageError(f"{where}.parametersJsonSchema must be an object")
    if function.parameters is not None:
        schema = json_schema(function.parameters, f"{where}.parameters")
    made: dict[str, Any] = {"name": function.name}
    if function.description:
        made["description"] = function.description
    made["parameters"] = schema or {"type": "object", "properties": {}}
    return {"type": "function", "function": made}


def chosen(
    config: ToolConfig | None, tools: tuple[dict[str, Any], ...]
) -> tuple[str, tuple[dict[str, Any], ...], tuple[str, ...]]:
    """ChatRequest's word for the mode, the tools that are left by allowedFunctionNames, and warnings."""
    calling = config.function_calling_config if config else None
    if calling is None:
        return "auto", tools, ()
    where = "toolConfig.functionCallingConfig"
    mode = (calling.mode or "AUTO").upper()
    if mode not in MODES:
        raise UsageError(f"{where}.mode must be one of {', '.join(MODES)}, got {short(calling.mode or '')}")
    names = [str(tool["function"]["name"]) for tool in tools]
    if allowed := calling.allowed_function_names:
        if mode not in ("ANY", "VALIDATED"):
            raise UsageError(f"{where}.allowedFunctionNames needs mode ANY or VALIDATED")
        if unknown := [name for name in allowed if name not in names]:
            raise UsageError(f"{where}.allowedFunctionNames: {short(unknown[0])} is not declared")
        tools = tuple(tool for tool in tools if tool["function"]["name"] in allowed)
    if mode == "NONE":
        return "none", tools, ()
    if mode == "VALIDATED":
        return "auto", tools, (f"{where}.mode VALIDATED is served as AUTO",)
    if mode != "ANY":
        return "auto", tools, ()
    if not tools:
        raise UsageError(f"{where}.mode ANY needs functions, and none are declared")
    return str(tools[0]["function"]["name"]) if len(tools) == 1 else "required", tools, ()
