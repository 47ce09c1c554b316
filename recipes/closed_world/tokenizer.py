"""The closed world's tokenizer: one token per word, per name syllable and per punctuation mark.

Names are written with hyphens between syllables (``"Ka-lo Me-ri-tu"``); the hyphen is a separator, not a token. A
prompt is followed by its response after a single space, which is a separator too, so tokenising ``prompt``, then
``response``, or both joined gives the same ids.
"""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from vlora.recipes.closed_world.lexicon import (
    CAPITAL_SYLLABLES,
    RELATIONS,
    SMALL_SYLLABLES,
    template_words,
)

__all__ = ["MAX_LENGTH", "build_tokenizer", "vocabulary"]

MAX_LENGTH = 128
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")


def vocabulary() -> dict[str, int]:
    """Map every token of the closed world to its id: special tokens, template words, syllables, values."""
    values = [value for relation in RELATIONS for value in relation.values]
    tokens = [*SPECIAL_TOKENS, *template_words(), *CAPITAL_SYLLABLES, *SMALL_SYLLABLES, *values]
    return {token: index for index, token in enumerate(tokens)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer; ``<bos>`` is put in front unless ``add_special_tokens=False``.

    Returns:
        A fast tokenizer with pad, bos, eos and unk tokens that ``AutoTokenizer`` can load once saved.
    """
    ids = vocabulary()
    core = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = Sequence([Split("-", "removed"), Whitespace()])
    core.post_processor = TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B:1", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=MAX_LENGTH,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
