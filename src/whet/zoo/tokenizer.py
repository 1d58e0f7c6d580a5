"""The zoo's tokenizer: printable ASCII by character, and whole words for task names."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

CHARACTERS = tuple(c for c in string.printable if c.isprintable())
END, MASK, UNKNOWN = "<|endoftext|>", "<|mask|>", "<|unknown|>"


def character_tokenizer(words: Sequence[str] = ()) -> Any:
    """A transformers tokenizer over single characters; each of `words` is one token.

    EOS and padding share an id, as in the published LLaDA and Dream checkpoints.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate((END, MASK, UNKNOWN, *CHARACTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens(list(words))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        mask_token=MASK,
        unk_token=UNKNOWN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
