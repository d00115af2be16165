"""Common scales of answers in words, such as `never`, `sometimes`, `often`."""

from collections.abc import Sequence

# Each scale lists its steps from the lowest to the highest. Words joined by | are one step: they
# mean the same, so a column that holds two of them has no order.
_AGREEMENT = (
    "strongly disagree|completely disagree|totally disagree",
    "disagree",
    "somewhat disagree|slightly disagree|tend to disagree|rather disagree",
    "neutral|neither|neither agree nor disagree|undecided",
    "somewhat agree|slightly agree|tend to agree|rather agree",
    "agree",
    "strongly agree|completely agree|totally agree",
)
_SATISFACTION = (
    "very dissatisfied|very unsatisfied",
    "dissatisfied|unsatisfied",
    "somewhat dissatisfied|slightly dissatisfied",
    "neutral|neither|neither satisfied nor dissatisfied",
    "somewhat satisfied|slightly satisfied",
    "satisfied",
    "very satisfied",
)
_FREQUENCY = (
    "never",
    "almost never",
    "rarely|seldom",
    "occasionally",
    "sometimes",
    "often|frequently",
    "usually",
    "almost always",
    "always",
)
_AMOUNT = (
    "not at all",
    "slightly|a little",
    "moderately|somewhat",
    "very|quite a bit",
    "extremely",
)
_QUALITY = ("very poor|very bad", "poor|bad", "fair|average", "good", "very good", "excellent")
_LEVEL = ("none", "very low", "low", "medium|moderate|middle", "high", "very high")
_SEVERITY = ("none", "mild", "moderate", "severe", "very severe")
_CHANCE = ("very unlikely", "unlikely", "neutral|neither", "likely", "very likely")
_SIZE = ("tiny", "small", "medium", "large", "huge")
_CLOTHES = ("xxs", "xs", "s", "m", "l", "xl", "xxl")

_SCALES = tuple(
    {word: step for step, words in enumerate(scale) for word in words.split("|")}
    for scale in (
        _AGREEMENT, _SATISFACTION, _FREQUENCY, _AMOUNT, _QUALITY,
        _LEVEL, _SEVERITY, _CHANCE, _SIZE, _CLOTHES,
    )
)  # fmt: skip


def on_a_scale(words: Sequence[str]) -> tuple[str, ...]:
    """Sorts words by the first scale that gives each word a step of its own; () if none does.

    Example:
        >>> on_a_scale(["Agree", "Disagree", "Neutral"])
        ('Disagree', 'Neutral', 'Agree')
    """
    plain = {word: " ".join(word.lower().split()) for word in words}
    for scale in _SCALES:
        steps = {scale.get(word) for word in plain.values()} - {None}
        if len(steps) == len(words):
            return tuple(sorted(words, key=lambda word: scale[plain[word]]))
    return ()
