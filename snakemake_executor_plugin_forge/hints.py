"""What to say about a word that is not known. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_miss(word: str, known: Iterable[str]) -> str:
    """The end of an error message: the closest word that is known or, if none is close, all of them."""
    words = [str(w) for w in known]
    near = difflib.get_close_matches(word, words, n=1)
    return f" Did you mean {near[0]}?" if near else f" Known are {', '.join(words) or 'none'}."
