"""Inputs to measure on when the user brings none: prompts and questions for language models, opinions for classifiers.

They show that a model works and how fast it is; what exits are worth depends on texts like those to come.
"""

from __future__ import annotations

import random

PROMPTS = (
    "Once upon a time there lived a poor woodcutter who had three daughters.",
    "The old king called his sons together and said,",
    "In the middle of the forest stood a little house, and in the house",
    "The fox said to the crow, 'What a beautiful voice you must have!' The crow",
    "Now it happened one winter evening that the wind blew open the door, and",
    "There was a princess so proud that no suitor was good enough for her.",
    "'Mirror, mirror, on the wall,' said the queen, and the mirror answered,",
    "Early next morning the youngest brother set out to seek the golden bird.",
)
"""Openings that are short and unlike each other; two of them invite repetition."""

CHATS = (
    ("question", "Why do ships made of steel float, although steel is heavier than water?"),
    (
        "summary",
        "Summarize this notice in two sentences.\n\nFrom Monday the library in Mill Street opens at nine and closes at seven. "
        "The reading room stays closed until the end of May, since its roof is being repaired; newspapers lie on the first floor "
        "meanwhile. Books that were due in April may be returned until the tenth of May without a fee. Children's afternoons "
        "take place in the town hall, every Wednesday at three, and need no registration.",
    ),
    (
        "translation",
        "Translate to English: Am nächsten Morgen fuhr der Zug erst um halb neun, weil Schnee auf den Gleisen lag.",
    ),
    (
        "mathematics",
        "A gardener plants 12 rows of 15 lettuces. Snails eat one lettuce in six, and she sells the rest at 2 for 3 euros. How "
        "much does she earn? Show each step.",
    ),
    (
        "answering",
        "Answer the question from the passages.\n\n1) The bridge at Torvik was built of oak in 1788 and burned down in 1840. A "
        "bridge of stone followed in 1844, with three arches, after plans by Ingrid Dahl's father.\n2) Ingrid Dahl, born in "
        "1831, wrote the town's chronicle. She describes the fire, which she saw as a child of nine from the church tower.\n3) "
        "Torvik has had a railway station since 1891; the stone bridge was widened for the road in 1926.\n\nQuestion: What did "
        "Ingrid Dahl see from the church tower, and how old was she?",
    ),
    ("writing", "Write a short letter to the neighbours that invites them to a summer party in the courtyard."),
    ("code", "Write a Python function that returns the longest word in a text, and explain how it works."),
    (
        "rewriting",
        "Correct the spelling and grammar of this message, and change nothing else: Hello Anna, i has recieved you're package "
        "yesterday but the box were open and one of the cups is broke. Can you sent me a other one? Thank's, Peter",
    ),
)
"""Questions for models with a chat template, of the kinds that people ask, with the kind of each."""

THINGS = (
    "the story", "the film", "this book", "the ending", "the acting", "her voice", "the old king", "the dinner", "our guide",
    "the second half", "the music", "the little house", "his speech", "the service", "the journey", "the plot", "the wolf",
    "the camera work", "the garden", "every scene", "the dialogue", "the youngest brother", "the hotel", "the first chapter",
)  # fmt: skip
GOOD = (
    "a joy from beginning to end", "warm and funny", "brilliantly told", "kind to everyone", "well worth the wait", "delicious",
    "full of wit", "moving without being sentimental", "a small masterpiece", "honest and wise", "bright as a summer morning",
    "better than anything I had hoped for",
)  # fmt: skip
BAD = (
    "dull and far too long", "a waste of an evening", "painfully predictable", "cold and careless", "a mess", "spoiled by greed",
    "so bad that I left early", "hollow", "clumsy in every way", "a bitter disappointment", "grey and joyless",
    "worse than I had feared",
)  # fmt: skip
MIXED = (
    "neither good nor bad", "not without charm", "hard to like and hard to forget", "fine, I suppose", "longer than it had to be",
    "what you would expect", "an odd thing to sit through", "not half as bad as they say",
)  # fmt: skip
LINKS = ("and", "but", "and yet", "because", "although", "while")
OPENINGS = ("", "", "I must say that ", "To my surprise ", "They all agree that ", "Nobody told me that ", "In short, ")
TAILS = (
    "",
    "",
    "",
    ", if you ask me",
    ", at least for the children",
    ", and I would go again tomorrow",
    ", and that is all",
)


def texts(count: int, seed: int = 0) -> list[str]:
    """Make `count` texts, short and long, clear and mixed, all different; the same for the same seed."""
    rng = random.Random(seed)  # noqa: S311 - no secret

    def clause() -> str:
        (opinion,) = rng.choices((GOOD, BAD, MIXED), (5, 5, 2))
        return f"{rng.choice(THINGS)} was {rng.choice(opinion)}"

    made: dict[str, None] = {}
    while len(made) < count:
        text = rng.choice(OPENINGS) + clause()
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            text += f" {rng.choice(LINKS)} {clause()}"
        text += rng.choice(TAILS) + "."
        made[text[0].upper() + text[1:]] = None
    return list(made)
