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

# Ways to put the same question: what a pattern finds may become any of its forms.
REWORDINGS = tuple(
    (re.compile(pattern), forms)
    for pattern, forms in (
        (
            r"^How (?:do|can|could) I\b",
            ("How do I", "How can I", "How could I", "What is the way to", "How to"),
        ),
        (r"^Why (?:do|should|would) I\b", ("Why should I", "Why would I", "Why do I")),
        (
            r"^What is the (?:purpose|job|role|point|use) of\b",
            ("What is the job of", "What is the use of", "What is the purpose of", "What is the point of"),
        ),
        (r"^Which\b", ("What", "Which")),
        (r"^(?:Explain|Describe|Tell me about)\b", ("Explain", "Describe", "Tell me about", "What about")),
        (
            r"^What is the difference between (.+?) and (.+?)\?",
            (r"How does \1 differ from \2?", r"\1 vs \2?", r"\1 or \2?", r"How is \1 different from \2?"),
        ),
        (
            r"^How (?:does|do) (.+?) work\?",
            (r"How does \1 work?", r"What does \1 do?", r"Explain how \1 works."),
        ),
        (
            r"^What does (.+?) do\?",
            (r"What does \1 do?", r"What is the job of \1?", r"What is \1 for?", r"What is \1 good for?"),
        ),
        (r"^What happens (?:when|if)\b", ("What happens when", "What happens if", "What if")),
        (r"^How many\b(.+)", (r"How many\1", r"What is the number of\1")),
    )
)
# Words that say how something is asked, and not what about.
LITTLE = frozenset(
    """
    a about all am an and any are as at be because been but by can could did do does doing done each
    else exactly explain for from get give had has have how i if in into is it its just keep kind
    let lets like made make makes me mean meant more most much must my need needs not of on one or
    other our please say see should show simple so some such tell terms than that the their them
    then there these they thing this those to use used was way we were what what's when where which
    while who why will with would you your
    """.split()  # noqa: SIM905
)
LITTLE_LIST = sorted(LITTLE)
KEYWORD_FORMS = (
    "{k}",
    "{k}?",
    "{k}",
    "tell me about {k}",
    "explain {k}",
    "question about {k}",
    "what about {k}?",
    "{k} please",
    "I need help with {k}",
)
# Beginnings and ends that say little, for any matter between them.
FRAMES = (
    "what does {k} do",
    "what is {k} good for",
    "why should I use {k}",
    "why do I need {k}",
    "how do I {k}",
    "how can I {k}",
    "how does {k} work",
    "how many {k}",
    "which {k}",
    "is {k}",
    "does {k} matter",
    "can {k} help",
    "when do I use {k}",
    "what happens with {k}",
    "what do you call {k}",
    "what do we say of {k}",
    "what does {k} tell me",
    "what does {k} mean for me",
    "what kind of thing is {k}",
    "what is the cause of {k}",
    "what is the size of {k}",
    "what is the meaning of {k}",
    "what makes {k} special",
    "who needs {k}",
    "name {k}",
    "tell me {k}",
    "do {k}",
    "where is {k}",
    "what is different about {k}",
    "how do I find out {k}",
    "what do I gain from {k}",
    "my teacher asked about {k}",
    "in a network, {k}",
    "on Linux, {k}",
    "in a computer, {k}",
    "in language models, {k}",
    "in programming, {k}",
)
WORD = re.compile(r"[^\s?!.,:;\"()]+(?:[.:/][^\s?!.,:;\"()]+)*")


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


def reworded(question: str, rng: random.Random) -> str:
    """The question in other words where a pattern knows some, else as it is."""
    for pattern, forms in REWORDINGS:
        if pattern.search(question):
            return pattern.sub(rng.choice(forms), question, count=1)
    return question


def keywords(text: str) -> list[str]:
    """The words of a text that say what it is about, in their order."""
    return [word for word in WORD.findall(text) if word.lower() not in LITTLE]


def telegram(questions: tuple[str, ...], answer: str, rng: random.Random) -> str:
    """A question in key words: most of one phrasing's, some of another's, sometimes two of the answer's.

    It teaches that the words of the matter decide, and not the form of the sentence around them.
    """
    words = [word for word in keywords(rng.choice(questions)) if rng.random() < 0.85]
    other = keywords(rng.choice(questions))
    words += [
        word for word in other if rng.random() < 0.25 and word.lower() not in {w.lower() for w in words}
    ]
    if rng.random() < 0.3:
        words += rng.sample(keywords(answer), k=min(2, len(keywords(answer))))
    if len(words) < 2:
        return rng.choice(questions)
    if rng.random() < 0.4:
        rng.shuffle(words)
    return rng.choice(KEYWORD_FORMS).format(k=" ".join(words))


def inflected(word: str, rng: random.Random) -> str:
    """The word in another case or number: WebSocket, websockets, WEBSOCKET."""
    roll = rng.random()
    if roll < 0.35:
        return word.lower()
    if roll < 0.45:
        return word.upper() if len(word) <= 5 else word.capitalize()
    if roll < 0.75 and word.isalpha() and len(word) > 2:
        return word[:-1] if word.endswith("s") and not word.endswith("ss") else word + "s"
    return word


def scrambled(question: str, rng: random.Random) -> str:
    """The question with its little words changed at random, some left out and some put in, its matter kept.

    Half of them do not make sense, which is the point: what is asked about decides, in whatever sentence.
    """
    words: list[str] = []
    for word in question.rstrip("?.!").split(" "):
        if rng.random() < 0.12:
            words.append(rng.choice(LITTLE_LIST))
        if word.lower().strip(",") not in LITTLE:
            words.append(inflected(word, rng) if rng.random() < 0.3 else word)
            continue
        roll = rng.random()
        if roll < 0.45:
            words.append(word)
        elif roll < 0.75:
            words.append(rng.choice(LITTLE_LIST))
    text = " ".join(words)
    if rng.random() < 0.45:
        text = rng.choice(FRAMES).format(k=text)
    return upper_first(text) + rng.choice(("?", "?", "?", "", ".")) if text else question


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
    questions: tuple[str, ...], topic: str | None, answer: str, banned: frozenset[str], rng: random.Random
) -> str | None:
    """One phrasing of a question, never one of the banned (normalized) ones; None when all are banned.

    With an `answer` one in eight comes as key words and one in five scrambled.  Of the others one in four is
    made from the topic, the rest as they were written or, one in three, reworded.
    """
    for _ in range(20):
        text = rng.choice(questions)
        roll = rng.random() if answer else 1.0
        if roll < 0.125:
            text = telegram(questions, answer, rng)
        elif roll < 0.325:
            made = from_topic(rng.choice(TOPIC_TEMPLATES), topic) if topic else text
            text = scrambled(made if rng.random() < 0.2 else text, rng)
        elif topic and rng.random() < 0.25:
            text = from_topic(rng.choice(TOPIC_TEMPLATES), topic)
        elif rng.random() < 0.33:
            text = reworded(text, rng)
        typed = noisy(text, rng) if text.strip() else text
        if text.strip() and normalized(text) not in banned and normalized(typed) not in banned:
            return typed
    return None
