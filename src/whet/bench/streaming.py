"""Memory that a streamed compression takes: a random checkpoint, a process that measures itself.

`measure.memory.run_isolated` calls `streamed_peak` in a fresh process.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from whet._io import write_json
from whet.compress.calibrate import open_model
from whet.compress.chain import parse_step
from whet.compress.method import Job


def write_random_llama(folder: Path, config: LlamaConfig, *, seed: int = 0) -> None:
    """A checkpoint of random float32 weights, one shard per block, written a block at a time."""
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    places: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        block = name.split(".")[2] if ".layers." in name else "outside"
        parts.setdefault(f"model-{block}.safetensors", []).append(name)
    for file, names in parts.items():
        tensors = {
            name: torch.ones(shapes[name])
            if len(shapes[name]) == 1
            else torch.randn(shapes[name], generator=generator) * 0.02
            for name in names
        }
        save_file(tensors, str(folder / file))
        places |= dict.fromkeys(names, file)
    total = sum((folder / file).stat().st_size for file in parts)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def streamed_peak(
    *,
    source: str,
    out: str,
    step: str,
    batches: int,
    batch_size: int,
    length: int,
    max_memory: int,
    threads: int,
) -> dict[str, Any]:
    """Compress a checkpoint folder by one step of a chain, streamed.

    Gives `added`: the largest anonymous memory (Linux's RssAnon) above that of the process after
    its imports; `samples` of it that were taken.
    """
    torch.set_num_threads(threads)
    method = parse_step(step)
    samples, done = [_anonymous()], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            samples.append(_anonymous())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        model = open_model(source)
        size = model.config.vocab_size
        generator = torch.Generator().manual_seed(1)
        texts = [
            {"input_ids": torch.randint(size, (batch_size, length), generator=generator)}
            for _ in range(batches)
        ]
        method.apply(
            Job(
                model=model,
                batches=texts,
                source=Path(source),
                folder=Path(out),
                max_memory=max_memory,
            )
        )
    finally:
        done.set()
        thread.join()
    return {"added": max(samples) - samples[0], "samples": len(samples)}


def _anonymous() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
