"""What a training row says: records dealt from shuffled decks, in changing words, as chat messages."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from training.corpus import Corpus, Dialogue, Fact, Message, ToolUse
from training.phrasing import noisy, normalized, phrase

T = TypeVar("T")

SYSTEMS = (
    "You are a helpful assistant.",
    "You are mead, a small language model.",
    "Answer briefly.",
    "You are a helpful assistant. Answer in one sentence.",
    "You answer questions about networks and computing.",
    "Be concise.",
    "You are a friendly teacher.",
    "You are mead, the built-in model of Kvasir. Answer briefly.",
)
SUMS = (
    "What is {sum}?",
    "{sum}",
    "{sum} = ?",
    "{sum} =",
    "How much is {sum}?",
    "Calculate {sum}.",
    "Compute {sum}",
    "What's {sum}?",
    "Work out {sum}.",
    "Can you tell me what {sum} is?",
)
WORDS = {
    "+": ("{a} plus {b}", "the sum of {a} and {b}"),
    "-": ("{a} minus {b}", "{b} less than {a}"),
    "*": ("{a} times {b}", "{a} multiplied by {b}", "{a} x {b}"),
}
# How often one record comes up, relative to the others.
RATES = {"facts": 4.0, "unknown": 3.0, "manners": 2.0, "stories": 0.7, "json": 1.0}
DIALOGUE_RATE, TOOL_RATE = 1.0, 1.0
SUM_SHARE, JOINED_SHARE, LONG_SHARE = 0.03, 0.10, 0.004
LONG_TOKENS = 1000


@dataclass(frozen=True)
class Sample:
    """One conversation, and the tools it was given."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None = None


class Deck(Generic[T]):
    """Deals every card once before any comes again, in an order that changes. Mutable."""

    def __init__(self, cards: list[T], rng: random.Random) -> None:
        self.cards, self.rng = list(cards), rng
        self.left: list[T] = []

    def deal(self) -> T:
        """The next card."""
        if not self.left:
            self.left = self.cards[:]
            self.rng.shuffle(self.left)
        return self.left.pop()


def turns(*texts: str, system: str | None = None) -> list[Message]:
    """Messages of a conversation in which user and assistant take turns."""
    head: list[Message] = [{"role": "system", "content": system}] if system else []
    return head + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def random_sum(rng: random.Random) -> tuple[str, str]:
    """A question of arithmetic and its answer: sums and differences to three digits, small products."""
    sign = rng.choice("++--*")
    top = 12 if sign == "*" else rng.choice((10, 100, 100, 100, 1000))
    a, b = rng.randrange(top + (sign == "*")), rng.randrange(top + (sign == "*"))
    if sign == "-" and a < b:
        a, b = b, a
    value = a + b if sign == "+" else a - b if sign == "-" else a * b
    forms = (f"{a} {sign} {b}",) * 3 + (f"{a}{sign}{b}",) + WORDS[sign]
    question = rng.choice(SUMS).format(sum=rng.choice(forms).format(a=a, b=b))
    question = question[:1].upper() + question[1:] if rng.random() < 0.7 else question.lower()
    return question, f"{a} {sign} {b} = {value}."


class Sampler:
    """Endless training conversations from a corpus. Mutable: it holds the decks and the random state."""

    def __init__(self, corpus: Corpus, banned: frozenset[str], seed: int) -> None:
        self.rng = random.Random(seed)
        self.banned = banned
        self.dropped: set[str] = set()
        groups: dict[str, list[Fact]] = {"facts": []}
        for name, records in corpus.facts.items():
            groups.setdefault(name if name in RATES else "facts", []).extend(records)
        self.decks = {name: Deck(records, self.rng) for name, records in groups.items() if records}
        self.dialogues = Deck(corpus.dialogues, self.rng)
        self.tool_uses = Deck(corpus.tools, self.rng)
        self.makers, self.weights = self._plan(groups, corpus)

    def _plan(
        self, groups: dict[str, list[Fact]], corpus: Corpus
    ) -> tuple[list[Callable[[], Sample]], list[float]]:
        """The makers of samples and how often each is called; the weights sum to 1."""
        plan: list[tuple[Callable[[], Sample], float]] = []
        for name, records in groups.items():
            if records:
                plan.append((partial(self.single, name), RATES[name] * len(records)))
        plan.append((self.dialogue, DIALOGUE_RATE * len(corpus.dialogues)))
        plan.append((self.tool_use, TOOL_RATE * len(corpus.tools)))
        rest = 1 - SUM_SHARE - JOINED_SHARE - LONG_SHARE
        total = sum(weight for _, weight in plan)
        plan = [(maker, weight / total * rest) for maker, weight in plan if weight]
        plan += [(self.sum, SUM_SHARE), (self.joined, JOINED_SHARE), (self.long, LONG_SHARE)]
        return [maker for maker, _ in plan], [weight for _, weight in plan]

    def draw(self) -> Sample:
        """The next conversation."""
        return self.rng.choices(self.makers, self.weights)[0]()

    def shares(self) -> str:
        """How many rows in a hundred are of each kind."""
        names = [
            *self.decks,
            *(["dialogues"] if self.dialogues.cards else []),
            *(["tools"] if self.tool_uses.cards else []),
            "sums",
            "joined",
            "long",
        ]
        return ", ".join(f"{name} {weight:.1%}" for name, weight in zip(names, self.weights, strict=True))

    def pair(self, name: str) -> tuple[str, str]:
        """A question of a deck, in some phrasing that is not held out, and its answer."""
        while True:
            fact = self.decks[name].deal()
            answer = fact.answer if name == "facts" else ""
            question = phrase(fact.questions, fact.topic, answer, self.banned, self.rng)
            if question is not None:
                return question, fact.answer
            self.dropped.add(str(fact.place))

    def any_pair(self) -> tuple[str, str]:
        """A question of any kind: mostly facts, some talk, some sums."""
        roll = self.rng.random()
        if roll < 0.06:
            return random_sum(self.rng)
        others = [name for name in ("manners", "unknown", "json") if name in self.decks]
        return self.pair(self.rng.choice(others) if others and roll < 0.25 else "facts")

    def system(self, share: float) -> str | None:
        """Some system text, or none."""
        return self.rng.choice(SYSTEMS) if self.rng.random() < share else None

    def single(self, name: str) -> Sample:
        """One question, one answer."""
        return Sample(turns(*self.pair(name), system=self.system(0.1)))

    def sum(self) -> Sample:
        """One to four sums in a conversation: the rows are short."""
        texts = [text for _ in range(self.rng.choice((1, 1, 2, 4))) for text in random_sum(self.rng)]
        return Sample(turns(*texts, system=self.system(0.1)))

    def joined(self) -> Sample:
        """Two or three questions that have nothing to do with one another."""
        texts = [text for _ in range(self.rng.choice((2, 2, 3))) for text in self.any_pair()]
        return Sample(turns(*texts, system=self.system(0.2)))

    def long(self) -> Sample:
        """A conversation that fills the context (about 50 tokens a pair); the row is cut at its end."""
        texts = [text for _ in range(self.rng.randrange(8, 24)) for text in self.any_pair()]
        return Sample(turns(*texts, system=self.system(0.2)))

    def dialogue(self) -> Sample:
        """A written conversation."""
        card: Dialogue = self.dialogues.deal()
        texts = list(card.turns)
        if self.rng.random() < 0.3:
            texts[0] = noisy(texts[0], self.rng)
        if any(normalized(text) in self.banned for text in texts[::2]):
            self.dropped.add(str(card.place))
            return self.dialogue()
        return Sample(turns(*texts, system=card.system))

    def tool_use(self) -> Sample:
        """A question with tools at hand; now and then a further tool, or a question that needs none."""
        card: ToolUse = self.tool_uses.deal()
        tools = list(card.tools)
        if self.rng.random() < 0.25:
            names = {tool["function"]["name"] for tool in tools}
            tools += [
                tool
                for tool in self.rng.choice(self.tool_uses.cards).tools[:1]
                if tool["function"]["name"] not in names
            ]
            self.rng.shuffle(tools)
        if self.rng.random() < 0.1:
            return Sample(turns(*self.pair("facts"), system=card.system), tools)
        question = noisy(card.question, self.rng) if self.rng.random() < 0.5 else card.question
        messages = turns(question, system=card.system)
        if card.call is not None:
            messages.append(
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"type": "function", "function": card.call}],
                }
            )
        if card.result is not None:
            messages.append({"role": "tool", "content": card.result})
        if card.answer is not None:
            messages.append({"role": "assistant", "content": card.answer})
        return Sample(messages, tools)
