"""Tiny checkpoints on disk and tiny methods, which the tests of chains share."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizerFast, LlamaConfig, LlamaForCausalLM

from whet.compress.method import Compression
from whet.models.roles import blocks
from whet.zoo.tokenizer import character_tokenizer

WORDS = ["sudoku", "queens", "brackets", "ladder", "colouring", "permutation", "sort"]


def llama(folder, *, blocks=3, dtype=torch.float32):
    """A random Llama with the zoo's tokenizer."""
    tokenizer = character_tokenizer([*WORDS, "<think>", "</think>"])
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=blocks,
        intermediate_size=48,
        vocab_size=len(tokenizer) + 2,
        max_position_embeddings=160,
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert(folder):
    """A random BERT trunk with a tokenizer of letters."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(97, 123)]
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(vocab))
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=len(vocab),
        max_position_embeddings=64,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Scale(Compression):
    """Multiplies what every MLP writes by a factor and by how strong its input is."""

    stage: ClassVar = "transform"
    id: ClassVar = "scale"
    streams: ClassVar = True
    factor: float = 0.5

    def check(self, model):
        blocks(model)

    def shape(self, model):
        pass

    def apply(self, job):
        def edit(run):
            name = run.block.mlp.output
            seen = run.statistics[name]
            with torch.no_grad():
                strength = 1 + seen.square_sum.mean().float() / seen.count / 100
                weight = run.model.get_submodule(name).weight
                weight.mul_((self.factor * strength).to(weight.dtype))
            return {"seen": seen.count}

        found = job.calibrate(edit, identity=self.identity())
        return {"tokens": found.tokens, "blocks": list(found.reports)}


@dataclass(frozen=True)
class Break(Scale):
    """Writes NaN."""

    id: ClassVar = "break"
    calibrates: ClassVar = False

    def apply(self, job):
        next(m for m in job.model.modules() if isinstance(m, nn.Linear)).weight.data.fill_(
            float("nan")
        )
        return {}
