"""The words of a question."""

import re

# Words that any question may have, whatever it asks about.
FUNCTION_WORDS = frozenset(
    {
        *("a", "an", "the", "this", "that", "these", "those", "it", "you", "there", "and", "or", "many", "much"),
        *("is", "are", "was", "were", "do", "does", "did", "see", "name", "video", "picture", "clip"),
        *("please", "tell", "me", "can", "could", "would", "say"),
        *("in", "on", "at", "of", "to", "from", "for", "with", "by"),
        *("what", "which", "who", "whom", "where", "when", "why", "how"),
    }
)


def content_words(text: str) -> set[str]:
    """The words of a question that say what it is about, in lower case."""
    return set(re.findall(r"\w+", text.lower())) - FUNCTION_WORDS
