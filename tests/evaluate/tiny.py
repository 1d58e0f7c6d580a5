"""Small models for the tests of models under test."""

from types import SimpleNamespace

import torch
from torch import nn

from whet.models.denoiser import Denoiser, Traits

MASK, EOS = 39, 0


def tiny_llama(vocab, *, context=64, seed=0, dtype=torch.float32):
    """A random Llama whose next token depends clearly on what it has read."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=vocab,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=None,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


class _Stack(nn.Module):
    def __init__(self, logits_of):
        super().__init__()
        self.logits_of = logits_of

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        return SimpleNamespace(last_hidden_state=self.logits_of(input_ids))


class Table(nn.Module):
    """A masked LM whose logits are a function of its tokens, [R, L] -> [R, L, V]."""

    def __init__(self, logits_of):
        super().__init__()
        self.base_model = _Stack(logits_of)
        self.nothing = nn.Parameter(torch.zeros(1))

    def head(self, states):
        return states


def table_denoiser(logits_of, *, vocab=40, mask=MASK, shift=False, context=64):
    return Denoiser(
        model=Table(logits_of),
        traits=Traits(shift=shift),
        mask_token_id=mask,
        eos_token_ids=(EOS,),
        pad_token_id=EOS,
        vocab_size=vocab,
        context_length=context,
    )
