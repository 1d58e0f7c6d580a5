"""A DiffusionGemma of two layers, and transformers' own generation with it as the reference."""

import pytest
import torch

from whet import rng as rng_

BLOCK = 8


def tiny_gemma(dtype=torch.float32, **settings):
    """The first layer attends to less than a prompt, the second to everything; blocks of 8.

    Every weight is random and not small, norms and scales too, so that what a layer is told shows
    in the logits. settings: of the text model.
    """
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
    )
    from transformers.models.gemma4.configuration_gemma4 import Gemma4VisionConfig

    sizes = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"global_head_dim": 12, "num_global_key_value_heads": 1, "sliding_window": 6}
    sizes |= {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 16}
    sizes |= {"layer_types": ["sliding_attention", "full_attention"]}
    sizes |= {"max_position_embeddings": 64, "pad_token_id": 0, "eos_token_id": 1}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    vision |= {"num_attention_heads": 2, "num_key_value_heads": 2, "position_embedding_size": 8}
    torch.manual_seed(0)
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(**(sizes | settings)),
        vision_config=Gemma4VisionConfig(**vision),
        canvas_length=BLOCK,
        image_token_id=59,
        initializer_range=0.15,
    )
    model = DiffusionGemmaForBlockDiffusion(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "vision" not in name and (tensor.ndim == 1 or "scal" in name):
                tensor.add_(torch.randn_like(tensor) * 0.3)
    if dtype == torch.float64:  # transformers' fused experts know no float64
        model.set_experts_implementation("eager")
    return model.to(dtype)


class Tape:
    """What randomness our decoding asked for, in order, to be handed to transformers' own."""

    def __init__(self, patch):
        self.seeds = []

        def recording(seed, name, *keys, original=rng_.keyed_torch):
            generator = original(seed, name, *keys)
            self.seeds.append((name, generator.initial_seed()))
            return generator

        patch.setattr(rng_, "keyed_torch", recording)

    def next(self, *names):
        name, seed = self.seeds.pop(0)
        assert name in names, "the other side asks for randomness in another order"
        return torch.Generator().manual_seed(seed)

    def canvas(self, sampler, batch_size, device):
        """In place of the sampler's initialize_canvas, which renoises too."""
        shape = (batch_size, sampler.canvas_length)
        return torch.randint(sampler.vocab_size, shape, generator=self.next("canvas", "renoise"))

    def multinomial(self, probs, num_samples):
        """In place of torch's: the first token whose cumulated probability exceeds the noise."""
        assert num_samples == 1
        uniform = torch.rand(len(probs), generator=self.next("token"), dtype=torch.float64)
        return (probs.double().cumsum(-1) <= uniform[:, None]).sum(-1, keepdim=True)


def official(model, prompt, length, options, tape, *, canvas_length=BLOCK, eos=None):
    """transformers' generate() under recorded randomness: (tokens, decoder forwards)."""
    from transformers.models.diffusion_gemma import generation_diffusion_gemma as theirs

    config = theirs.DiffusionGemmaGenerationConfig(
        max_new_tokens=length,
        max_denoising_steps=options.max_steps,
        sampler_config=theirs.EntropyBoundSamplerConfig(options.entropy_bound),
        t_min=options.t_min,
        t_max=options.t_max,
        stability_threshold=options.stability,
        confidence_threshold=options.confidence_threshold,
        eos_token_id=eos,
        pad_token_id=None if eos is None else 0,
    )
    forwards = []
    hook = model.model.decoder.register_forward_hook(lambda *_: forwards.append(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.config, "canvas_length", canvas_length)
        patch.setattr(
            theirs.EntropyBoundSampler,
            "initialize_canvas",
            lambda sampler, batch_size, device: tape.canvas(sampler, batch_size, device),
        )
        patch.setattr(torch, "multinomial", tape.multinomial)
        out = model.generate(prompt[None], generation_config=config)
    hook.remove()
    return out.sequences, len(forwards)
