"""Smaller models: pruning, factorization, quantization.

- `method`: what a method is, and what it is given. `chain`, `plan`, `run`, `report`: several in
  order, what they would do, doing it, what came of it. `target`, `data`, `quality`, `sizes`: the
  model to compress, calibration texts, what is measured.
- `calibrate/`: models block by block, from disk where memory is short.
- `magnitude`, `wanda`, `sparsegpt`, `owl`, `rtn`, `gptq`, `awq`, `smoothquant`, `svd`: solvers for
  one layer, as functions of its weight and statistics. `baselines/`: these as steps of a chain.
- `slicegpt/`, `layer_pruning/`, `heal/`: published systems.
"""
