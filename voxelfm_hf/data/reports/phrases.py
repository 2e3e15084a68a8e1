"""A notation for the phrases of reports that a radiologist can read, and its translation to regular expressions."""

import re


def phrase_pattern(phrases: str) -> re.Pattern[str]:
    """Compile phrases into one pattern that ignores case and matches whole words.

    Commas separate phrases; a space also matches a hyphen or slash; `*` stands for any beginning or ending of a word;
    `|` separates alternatives of one word; `~` stands for up to four words in between, but not for "not", "no" or
    "without".

    Args:
        phrases: For instance "ground glass, nodul*, lobe|lobes, septal ~ thick*".

    Returns:
        A pattern that finds any of the phrases.

    Example:
        >>> phrase_pattern("ground glass, increas* ~ size").findall("Ground-glass areas; increase in the size")
        ['Ground-glass', 'increase in the size']
    """
    return re.compile(r"\b(?:" + "|".join(_expression(phrase) for phrase in phrases.split(",")) + r")\b", re.IGNORECASE)


def _expression(phrase: str) -> str:
    expression = ""
    for word in phrase.split():
        if word == "~":
            # Words in between must not deny the phrase: "heart is not enlarged" is no "heart ~ enlarged".
            expression += r"(?:(?!(?:not|no|without)\b)[\w'.]+[\s/,-]+){0,4}?"
        else:
            alternatives = "|".join(re.escape(part).replace(r"\*", r"\w*") for part in word.split("|"))
            expression += rf"(?:{alternatives})[\s/-]+"
    return expression.removesuffix(r"[\s/-]+")
