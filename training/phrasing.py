"""How one question becomes many: templates around a topic, and the noise of hasty typing."""

import random
import re

TOPIC_TEMPLATES = (
    "What is {topic}?",
    "What is {topic}?",
    "Explain {topic}.",
    "What's {topic}?",
    "Define {topic}.",
    "Tell me about {topic}.",
    "Can you explain {topic} to me?",
    "Explain {topic} in one sentence.",
    "What does {bare} mean?",
    "What is meant by {bare}?",
    "{Bare}?",
    "Describe {topic}.",
    "What is {topic} in simple terms?",
    "Can you tell me what {topic} is?",
    "{Bare} explained",
    "Give me a short definition of {bare}.",
    "I want to know what {topic} is.",
    "Do you know what {topic} is?",
    "What exactly is {topic}?",
    "How would you define {topic}?",
)
OPENERS = (
    "hey, {q}",
    "hi, {q}",
    "hello, {q}",
    "quick question: {q}",
    "please tell me: {q}",
    "ok, {q}",
    "so, {q}",
    "I have a question. {Q}",
    "One more question: {q}",
    "In short, {q}",
    "Briefly: {q}",
)
CLOSERS = (
    "{q} Please keep it short.",
    "{q} In one sentence.",
    "{q} Thanks.",
    "{q} Answer in one sentence.",
    "{q} I am new to this.",
    "{q} Explain it simply.",
)
ARTICLE = re.compile(r"^(an?|the) ", re.IGNORECASE)
SHORTER = (
    (re.compile(r"^What is\b"), "What's"),
    (re.compile(r"\bdoes not\b"), "doesn't"),
    (re.compile(r"\bdo not\b"), "don't"),
    (re.compile(r"\bis not\b"), "isn't"),
    (re.compile(r"^How is\b"), "How's"),
    (re.compile(r"\bcannot\b"), "can't"),
)


def normalized(text: str) -> str:
    """The text in lower case without punctuation, one blank between words. Equal means the same question."""
    return " ".join(re.sub(r"[^a-z0-9+#]+", " ", text.lower().replace("'", "")).split())


def bare(topic: str) -> str:
    """The topic without its article."""
    return ARTICLE.sub("", topic)


def upper_first(text: str) -> str:
    """The text with its first letter upper case, the rest untouched."""
    return text[:1].upper() + text[1:]


def lower_first(text: str) -> str:
    """The text with its first letter lower case, unless the first word is an abbreviation or a name."""
    word = text.split(" ", 1)[0]
    if word == "I" or word[1:] != word[1:].lower():
        return text
    return text[:1].lower() + text[1:]


def from_topic(template: str, topic: str) -> str:
    """A template filled with a topic."""
    name = bare(topic)
    return template.format(topic=topic, bare=name, Bare=upper_first(name))


def typo(text: str, rng: random.Random) -> str:
    """The text with one slip in a word of five letters or more: two swapped, one missing or one doubled."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word) - 2)
    words[index] = rng.choice(
        (
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
        )
    )
    return " ".join(words)


def noisy(question: str, rng: random.Random) -> str:
    """The question as somebody might type it; about two in five stay as they are."""
    text = question
    if rng.random() < 0.08:
        for pattern, short in SHORTER:
            text = pattern.sub(short, text)
    roll = rng.random()
    if roll < 0.10:
        text = rng.choice(OPENERS).format(q=lower_first(text), Q=upper_first(text))
    elif roll < 0.16:
        text = rng.choice(CLOSERS).format(q=text if text[-1] in ".?!" else text + ".")
    elif roll < 0.20:
        end = text[-1] if text[-1] in ".?!" else ""
        text = text.rstrip(".?!") + (" please" if rng.random() < 0.5 else ", please") + end
    if rng.random() < 0.05:
        text = typo(text, rng)
    if rng.random() < 0.25:
        text = text.lower()
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    return text if normalized(text) else question


def phrase(
    questions: tuple[str, ...], topic: str | None, banned: frozenset[str], rng: random.Random
) -> str | None:
    """One phrasing of a question, never one of the banned (normalized) ones; None when all are banned.

    Written phrasings and topic templates are drawn half and half.
    """
    for _ in range(20):
        if topic and rng.random() < 0.5:
            text = from_topic(rng.choice(TOPIC_TEMPLATES), topic)
        else:
            text = rng.choice(questions)
        typed = noisy(text, rng)
        if normalized(text) not in banned and normalized(typed) not in banned:
            return typed
    return None
