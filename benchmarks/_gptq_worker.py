"""One GPTQ of `gptq_speed.py`, in whichever environment runs it: only the call itself is timed.

python _gptq_worker.py whet|llmcompressor FOLDER
"""

import contextlib
import json
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, LlamaForCausalLM


@contextlib.contextmanager
def timed():
    """Seconds on the clock, and of this process' one thread."""
    spent, clock, process = {}, time.perf_counter(), time.process_time()
    yield spent
    spent["seconds"] = time.perf_counter() - clock
    spent["cpu_seconds"] = time.process_time() - process


def with_whet(model, rows, batch_size, folder):
    from whet.compress.baselines.quantizing import GPTQ
    from whet.compress.method import Job

    batches = [{"input_ids": part} for part in rows.split(batch_size)]
    method = GPTQ(bits=4, group_size=128, act_order=True)
    with timed() as spent:
        method.apply(Job(model=model, batches=batches))
    return spent


def with_llmcompressor(model, rows, batch_size, folder):
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    lines = rows.tolist()
    masks = [[1] * len(line) for line in lines]
    data = Dataset.from_dict({"input_ids": lines, "attention_mask": masks})
    recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
    processor = AutoTokenizer.from_pretrained(folder)  # which it wants and does not use
    with timed() as spent:
        oneshot(
            model=model,
            dataset=data,
            recipe=recipe,
            processor=processor,
            batch_size=batch_size,
            max_seq_length=rows.shape[1],
            num_calibration_samples=len(rows),
            shuffle_calibration_samples=False,
        )
    return spent


def main():
    which, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    settings = json.loads((folder / "settings.json").read_text())
    data = load_file(folder / "data.safetensors")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        before = model(data["held_out"]).logits
    run = {"whet": with_whet, "llmcompressor": with_llmcompressor}[which]
    spent = run(model, data["rows"], settings["batch_size"], folder)
    with torch.no_grad():
        after = model(data["held_out"]).logits
    error = float((after - before).square().mean() / before.square().mean())
    print(json.dumps({**spent, "error": error}))


if __name__ == "__main__":
    main()
