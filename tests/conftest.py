"""What every test shares: one thread, checked tensor annotations, four tiny masked LMs."""

import os
import signal

# A suite that a script starts in the background ignores Ctrl-C, and its children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Tests never reach the hub; without this a wrong local name would wait for the network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401 - the hook below names it

# Annotated shapes and dtypes are checked at every call; whet must not be imported before this.
install_import_hook(
    [
        "whet.dlm",
        "whet.noise",
        "whet.layers",
        "whet.models.denoiser",
        "whet.models.kv",
        "whet.models.roles",
        "whet.data",
        "whet.ar",
        "whet.train",
        "whet.compress",
    ],
    "tests.typecheck.checked",
)

torch.set_num_threads(1)

VOCAB, MASK, EOS, BLOCK = 40, 39, 0, 4


@pytest.fixture
def tiny_llada():
    """A LLaDA of two layers in float64, with grouped keys; mask id 39, EOS and padding 0."""
    from whet.models.llada import LLaDAConfig, LLaDAModelLM

    torch.manual_seed(0)
    config = LLaDAConfig(
        d_model=32,
        n_heads=4,
        n_kv_heads=2,
        n_layers=2,
        mlp_hidden_size=48,
        vocab_size=VOCAB,
        max_sequence_length=64,
        rope_theta=10000.0,
        init_std=0.2,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LLaDAModelLM(config).double().eval()


@pytest.fixture
def tiny_dream():
    """A Dream of two layers in float64, with grouped keys; mask id 39, EOS and padding 0."""
    from whet.models.dream import DreamConfig, DreamModel

    torch.manual_seed(0)
    config = DreamConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_theta=10000.0,
        initializer_range=0.2,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return DreamModel(config).double().eval()


@pytest.fixture
def tiny_sdar():
    """An SDAR of two layers in float64, with blocks of 4; mask id 39, EOS and padding 0."""
    from whet.models.sdar import SDARConfig, SDARForCausalLM

    torch.manual_seed(0)
    config = SDARConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_theta=10000.0,
        initializer_range=0.2,
        block_length=BLOCK,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return SDARForCausalLM(config).double().eval()


@pytest.fixture
def tiny_llada2():
    """A LLaDA2 of a dense and a sparse layer in float64, with blocks of 4; ids as above."""
    from whet.models.llada2 import LLaDA2MoeConfig, LLaDA2MoeModelLM

    torch.manual_seed(0)
    config = LLaDA2MoeConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=2,
        intermediate_size=48,
        vocab_size=VOCAB,
        max_position_embeddings=64,
        rope_theta=10000.0,
        initializer_range=0.2,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=2,
        topk_group=1,
        block_length=BLOCK,
        mask_token_id=MASK,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LLaDA2MoeModelLM(config).double().eval()
