"""The chat format: messages to text, with a loss weight for each piece.

chat_template.jinja renders the same text.
"""

import json
from dataclasses import dataclass
from typing import Any

from training.corpus import Message

END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
RESPONSE, RESPONSE_END = "<tool_response>", "</tool_response>"
CONTROL_TOKENS = (END_OF_TEXT, START, END)
MARKUP_TOKENS = (CALL, CALL_END, RESPONSE, RESPONSE_END)
READ_WEIGHT, WRITE_WEIGHT = 0.1, 1.0


@dataclass(frozen=True)
class Piece:
    """A stretch of text and the weight of its tokens in the loss."""

    text: str
    weight: float


def as_json(value: Any) -> str:
    """The JSON that the template's `tojson` gives: on one line, keys in their order, letters unescaped."""
    return json.dumps(value, ensure_ascii=False)


def system_text(system: str | None, tools: list[dict[str, Any]] | None) -> str | None:
    """The system message with the tools under it, or None when there is neither."""
    if not tools:
        return system
    lines = "\n".join(as_json(tool) for tool in tools)
    head = system + "\n\n" if system else ""
    return f"{head}# Tools\n<tools>\n{lines}\n</tools>"


def assistant_text(message: Message) -> str:
    """What the assistant writes: its content, then its calls."""
    parts = [message["content"]] if message.get("content") else []
    for call in message.get("tool_calls") or ():
        function = call["function"]
        arguments = function["arguments"]
        body = arguments if isinstance(arguments, str) else as_json(arguments)
        name = as_json(function["name"])
        parts.append(f'{CALL}\n{{"name": {name}, "arguments": {body}}}\n{CALL_END}')
    return "\n".join(parts)


def pieces(messages: list[Message], tools: list[dict[str, Any]] | None = None) -> list[Piece]:
    """The conversation as text, in order; what the assistant writes weighs 1, what it reads 0.1.

    Answers of tools that follow one another share one user turn, as in Qwen's template.
    """
    system = messages[0]["content"] if messages[0]["role"] == "system" else None
    head = system_text(system, tools)
    made = [] if head is None else [Piece(f"{START}system\n{head}{END}\n", READ_WEIGHT)]
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "user":
            made.append(Piece(f"{START}user\n{message['content']}{END}\n", READ_WEIGHT))
        elif role == "assistant":
            made.append(Piece(f"{START}assistant\n", READ_WEIGHT))
            made.append(Piece(assistant_text(message) + END, WRITE_WEIGHT))
            made.append(Piece("\n", READ_WEIGHT))
        elif role == "tool":
            before = messages[index - 1]["role"] == "tool"
            after = index + 1 < len(messages) and messages[index + 1]["role"] == "tool"
            text = f"{RESPONSE}\n{message['content']}\n{RESPONSE_END}"
            made.append(
                Piece(
                    ("\n" if before else f"{START}user\n") + text + ("" if after else f"{END}\n"), READ_WEIGHT
                )
            )
    return made


def render(messages: list[Message], tools: list[dict[str, Any]] | None = None, ask: bool = False) -> str:
    """The whole conversation as one text; `ask` opens the assistant's next turn."""
    return "".join(piece.text for piece in pieces(messages, tools)) + (f"{START}assistant\n" if ask else "")
