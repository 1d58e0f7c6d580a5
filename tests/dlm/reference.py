"""SOAR and PBS written as plainly as the paper states them: the oracle for the row-wise code.

One prompt, one hypothesis at a time, Python lists; written from the published pseudo-code.
"""

import torch


def _proposals(denoiser, sequence, positions):
    rows = torch.zeros(len(positions), dtype=torch.long)
    logits = denoiser.logits(sequence[None], None, rows, torch.tensor(positions))
    probs = logits.double().softmax(-1)
    best = probs.max(-1)
    return dict(
        zip(positions, zip(best.values.tolist(), best.indices.tolist(), strict=True), strict=True)
    )


def soar(
    denoiser,
    canvas,
    start,
    *,
    beam_width,
    threshold,
    max_parallel,
    min_parallel,
    block_length,
    score,
    collapse,
    stop,
):
    """collapse: "best_parallel" or a number r (any parallel, best advanced >= r)."""
    mask = denoiser.mask_token_id
    length = len(canvas)
    blocks = [range(lo, lo + block_length) for lo in range(start, length, block_length)]

    def masked(seq, positions):
        return [p for p in positions if seq[p] == mask]

    def current(seq):
        for block in blocks:
            if masked(seq, block):
                return masked(seq, block)
        return []

    def value(h):
        return h["score"] / max(1, h["n"]) if score == "mean" else h["score"]

    beam = [{"seq": canvas.clone(), "score": 0.0, "n": 0}]
    steps = rows = 0
    while True:
        open_ = [bool(current(h["seq"])) for h in beam]
        if not (open_[0] if stop == "best" else any(open_)):
            break
        steps += 1
        successors = []
        for h in beam:
            candidates = current(h["seq"])
            if not candidates:
                successors.append({**h, "parallel": False})
                continue
            rows += 1
            proposals = _proposals(denoiser, h["seq"], candidates)
            ordered = sorted(candidates, key=lambda p: (-proposals[p][0], p))
            sure = [p for p in ordered if proposals[p][0] > threshold]
            if len(sure) >= min_parallel:
                choices, parallel = [sure[:max_parallel]], True
            else:
                choices, parallel = [[p] for p in ordered[:beam_width]], False
            for positions in choices:
                seq = h["seq"].clone()
                gained = 0.0
                for p in positions:
                    seq[p] = proposals[p][1]
                    gained += proposals[p][0]
                successors.append(
                    {
                        "seq": seq,
                        "score": h["score"] + gained,
                        "n": h["n"] + len(positions),
                        "parallel": parallel,
                    }
                )
        successors.sort(key=value, reverse=True)
        distinct = []
        for s in successors:
            if not any(torch.equal(s["seq"], d["seq"]) for d in distinct):
                distinct.append(s)
        if collapse == "best_parallel":
            narrow = distinct[0]["parallel"]
        else:
            advanced = distinct[0]["n"] - beam[0]["n"]
            narrow = any(s["parallel"] for s in successors) and advanced >= collapse
        beam = distinct[: 1 if narrow else beam_width]
    return beam[0]["seq"], steps, rows
