"""Openings to measure on when the user brings none: short, unlike each other, two of them asking for repetition."""

OPENINGS = (
    "Once upon a time there lived a poor woodcutter who had three daughters.",
    "The old king called his sons together and said,",
    "In the middle of the forest stood a little house, and in the house",
    "The fox said to the crow, 'What a beautiful voice you must have!' The crow",
    "Now it happened one winter evening that the wind blew open the door, and",
    "There was a princess so proud that no suitor was good enough for her.",
    "'Mirror, mirror, on the wall,' said the queen, and the mirror answered,",
    "Early next morning the youngest brother set out to seek the golden bird.",
)
