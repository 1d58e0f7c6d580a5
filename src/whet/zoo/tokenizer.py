"""The zoo's tokenizers: printable ASCII by character with whole words, and any text by byte."""

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


def byte_tokenizer() -> Any:
    """A transformers tokenizer over the 256 bytes of UTF-8, in any text, and an EOS (id 256)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The printable stand-ins that byte-level tokenizers write for bytes, in a stable order.
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: i for i, symbol in enumerate((*symbols, END))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
