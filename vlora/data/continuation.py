"""A prompt with its continuation as tokens: one convention for training and scoring.

Prompt and continuation are joined by ``data.separator`` and tokenised together; the tokens that the joined
text shares with the prompt alone are the prompt, everything after them is the continuation (so a token that
straddles the boundary is scored, never hidden). A chat template, where used, takes the separator's place.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlora.data.config import RowFormat
from vlora.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Encoding", "encode_continuation", "join", "token_ids"]


@dataclass(frozen=True)
class Encoding:
    """Tokens of a prompt and its continuation.

    ``input_ids[prompt_length:]`` is the continuation; ``truncated`` says that tokens were dropped.
    """

    input_ids: list[int]
    prompt_length: int
    truncated: bool = False


def encode_continuation(
    tokenizer: "PreTrainedTokenizerBase",
    prompt: str,
    continuation: str,
    row_format: RowFormat,
    *,
    append_eos: bool = False,
    max_length: int | None = None,
) -> Encoding:
    """Tokenise a prompt with one continuation (a response, or one choice of several).

    Args:
        tokenizer: Tokenizer of the base model.
        prompt: Text before the continuation; may be empty.
        continuation: Text to learn or score.
        row_format: ``separator``, ``chat``, ``system`` and ``max_length``.
        append_eos: End the continuation with the end-of-sequence token (in a chat: the end of the turn).
        max_length: Tokens that fit; None takes ``row_format.max_length``. The prompt is cut at its front (a
            leading BOS stays), the continuation only when it does not fit on its own.
    """
    if _uses_chat(tokenizer, row_format):
        head, tail = _chat_texts(tokenizer, prompt, continuation, row_format.system, append_eos)
        prompt_ids = token_ids(tokenizer, head, special=False)
        ids = token_ids(tokenizer, head + tail, special=False)
    else:
        prompt_ids = token_ids(tokenizer, prompt)
        ids = token_ids(tokenizer, join(prompt, continuation, row_format.separator))
    if append_eos and tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return _fit(
        ids, _common_prefix(prompt_ids, ids), max_length or row_format.max_length, tokenizer.bos_token_id
    )


def join(prompt: str, continuation: str, separator: str = " ") -> str:
    """Join two texts; the separator is left out where one of them brings its own whitespace or is empty."""
    bare = not prompt or not continuation or prompt[-1].isspace() or continuation[0].isspace()
    return prompt + ("" if bare else separator) + continuation


def token_ids(tokenizer: "PreTrainedTokenizerBase", text: str, special: bool = True) -> list[int]:
    """Token ids without the EOS that some tokenizers add by themselves."""
    ids = list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])  # pyright: ignore
    if special and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids.pop()
    return ids


def _common_prefix(prompt_ids: list[int], ids: list[int]) -> int:
    """Length of the longest common prefix."""
    for position, (left, right) in enumerate(zip(prompt_ids, ids, strict=False)):
        if left != right:
            return position
    return min(len(prompt_ids), len(ids))


def _fit(ids: list[int], prompt_length: int, limit: int, bos: Any) -> Encoding:
    """Cut to the limit: first the front of the prompt (all but BOS or one token), then the end."""
    excess = len(ids) - limit
    if excess <= 0:
        return Encoding(ids, prompt_length)
    keep = 1 if prompt_length and ids[0] == bos else 0
    drop = min(excess, max(prompt_length - 1, 0))
    ids = ids[:keep] + ids[keep + drop :]
    return Encoding(ids[:limit], prompt_length - drop, truncated=True)


def _uses_chat(tokenizer: "PreTrainedTokenizerBase", row_format: RowFormat) -> bool:
    """Whether the chat template applies."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if row_format.chat == "always" and not has_template:
        raise DataError("data.chat is 'always' but the tokenizer has no chat template; use 'auto' or 'never'")
    return has_template and row_format.chat != "never"


def _chat_texts(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, continuation: str, system: str | None, end_turn: bool
) -> tuple[str, str]:
    """Rendered prompt up to the assistant's turn, and that turn's text (with its end if asked)."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    turn = [*messages, {"role": "assistant", "content": continuation}]
    try:
        head = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        whole = str(tokenizer.apply_chat_template(turn, tokenize=False)) if end_turn else ""
    except Exception as error:
        raise DataError(f"the tokenizer's chat template failed: {str(error).splitlines()[0]}") from error
    end = str(tokenizer.eos_token or "")
    tail = whole[len(head) :] if whole.startswith(head) else continuation
    if end and end in tail:
        tail = tail[
            : tail.rindex(end) + len(end)
        ]  # what templates put after the turn is not the model's to say
    return head, tail
