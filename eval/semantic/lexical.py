r"""Similarity of short texts by their words: what needs no model and no download.

token F1    2 P R / (P + R) over the two bags of words               (Rajpurkar et al. 2016, arXiv:1606.05250)
ROUGE-L     F of the longest common subsequence: P = L/|a|, R = L/|b|     (Lin 2004, ACL W04-1013, sec. 3)
lexical similarity of M answers: mean ROUGE-L over pairs                     (Fomicheva et al. 2020)
"""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

from vlora.errors import DataError

__all__ = ["answer_words", "lexical_dissimilarity", "normalise_answer", "rouge_l", "token_f1"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case, without punctuation, English articles and superfluous spaces, as question answering compares.

    Unicode is brought to its compatibility form first, so that look-alikes compare equal.
    """
    lowered = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", lowered).split())


def answer_words(text: str) -> list[str]:
    """Words of the normalised text; the plain lower-case words when nothing else is left (an answer "A.")."""
    return normalise_answer(text).split() or text.lower().split()


def token_f1(first: str, second: str) -> float:
    """F1 of the words that two texts share, each as often as both have it.

    Returns:
        Similarity in [0, 1], symmetric; two texts without words count as equal.
    """
    left, right = Counter(answer_words(first)), Counter(answer_words(second))
    size = left.total() + right.total()
    return 2 * (left & right).total() / size if size else 1.0


def rouge_l(first: str, second: str) -> float:
    """ROUGE-L F1 over lower-case words, without stemming.

    Returns:
        Similarity in [0, 1], symmetric; two texts without words count as equal.
    """
    left, right = first.lower().split(), second.lower().split()
    if not left or not right:
        return float(left == right)
    return 2 * _common_subsequence(left, right) / (len(left) + len(right))


def _common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    row = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for column, other in enumerate(right, start=1):
            above = row[column]
            row[column] = before + 1 if word == other else max(above, row[column - 1])
            before = above
    return row[-1]


def lexical_dissimilarity(answers: Sequence[str]) -> float:
    """``-mean_{i<j} ROUGE-L(y_i, y_j)`` over the sampled answers.

    Args:
        answers: Two or more texts.

    Returns:
        Value in [-1, 0]; higher (nearer 0) is less certain.

    Raises:
        DataError: Fewer than two answers.
    """
    if len(answers) < 2:
        raise DataError(f"lexical similarity needs at least two answers, got {len(answers)}")
    counts = Counter(answers)  # sampled answers repeat: every pair of distinct texts is compared once
    total = sum(number * (number - 1) / 2 for number in counts.values())
    total += sum(counts[a] * counts[b] * rouge_l(a, b) for a, b in combinations(counts, 2))
    return -total / (len(answers) * (len(answers) - 1) / 2)
