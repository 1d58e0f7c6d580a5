"""GPTQ to 4 bits in groups of 128 against llm-compressor: seconds of the call, in turns.

A random Llama of 8 blocks, 512 wide; random tokens; float32 on one thread of the CPU. Both put
columns with strong inputs first with groups where they are (llm-compressor's default), calibrate
block by block with the errors of the blocks before, and leave the head alone. Each run is a
process of its own, in an environment of its own; loading the model is not timed. Beside it: the
error of the logits on tokens that neither has seen.

    python -m venv build/llmcompressor
    echo torch==2.13.0 > build/constraints.txt
    build/llmcompressor/bin/pip install -c build/constraints.txt llmcompressor
    OMP_NUM_THREADS=1 python benchmarks/gptq_speed.py [--repeats 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from _record import finish
from whet.measure.clock import paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record

VOCABULARY = 1024
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
WORKER = Path(__file__).with_name("_gptq_worker.py")


def prepare(folder, rows, length, batch_size):
    """The model and the data that every run reads."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")),
        **dict.fromkeys(("pad_token", "eos_token", "unk_token"), "w0"),
    ).save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    data = {
        name: torch.randint(VOCABULARY, (count, length), generator=generator)
        for name, count in (("rows", rows), ("held_out", 4))
    }
    save_file(data, folder / "data.safetensors")
    (folder / "settings.json").write_text(json.dumps({"batch_size": batch_size}))


def measure(python, which, folder):
    command = [str(python), str(WORKER), which, str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{which} did not run: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def version_of(python):
    code = "import importlib.metadata as m; print(m.version('llmcompressor'))"
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument(
        "--other", type=Path, default=Path("build/llmcompressor/bin/python"), help="its python"
    )
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    pythons = {"whet": Path(sys.executable), "llmcompressor": arguments.other}
    runs = {name: [] for name in pythons}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder, arguments.rows, arguments.length, arguments.batch_size)
        for turn in range(arguments.repeats):
            for name in pythons if turn % 2 == 0 else reversed(pythons):
                runs[name].append(found := measure(pythons[name], name, folder))
                print(name, found, flush=True)

    arms = []
    for name, found in runs.items():
        metrics = {
            key: Metric(value=statistics.median(r[key] for r in found), n=len(found), unit=unit)
            for key, unit in (("seconds", "s"), ("cpu_seconds", "s"), ("error", "fraction"))
        }
        chain = "gptq:bits=4,group_size=128,act_order=true"
        arms.append(Arm(name=name, chain=chain, metrics=metrics))
    claims = []
    for key, what in (("cpu_seconds", "processor time"), ("seconds", "time on the clock")):
        ratio, low, high = paired_ratio(
            [r[key] for r in runs["whet"]], [r[key] for r in runs["llmcompressor"]]
        )
        says = f"whet's GPTQ takes at most llm-compressor's {what}"
        claims.append(
            claim(
                f"gptq {key}",
                *("ratio", "whet", "llmcompressor", key, ratio, (low, high), "<=", 1.0, says),
            )
        )
    record = new_record(
        "gptq speed",
        title="GPTQ against llm-compressor",
        level="cpu",
        seeds={"weights": 0},
        settings={
            **SIZES,
            "rows": arguments.rows,
            "length": arguments.length,
            "batch_size": arguments.batch_size,
            "repeats": arguments.repeats,
            "threads": 1,
            "llmcompressor": version_of(arguments.other),
        },
        arms=arms,
        claims=claims,
        notes=[
            "Median of the turns' own ratios; the interval is a bootstrap over turns.",
            "Processor time is of one thread: on a machine with nothing else to do it is the time "
            "on the clock.",
            "error: mean squared difference of logits on unseen tokens, over their mean square.",
        ],
    )
    finish(record, arguments.out / "gptq_speed.json")


if __name__ == "__main__":
    main()
