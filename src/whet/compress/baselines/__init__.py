"""The methods that others are compared with, as steps of a chain: one module for each kind.

    pruning     Magnitude, Wanda, SparseGPT (with OWL's sparsities)
    quantizing  RTN, GPTQ
    scaling     AWQ, SmoothQuant
    factoring   SVD, ASVD, SVDLLM

All work on the linear layers of attention and MLPs, also where they are the experts of a mixture,
fused in one tensor. Embeddings, head, norms and routers stay as they are. The arithmetic is that
of the modules named like the methods, one layer at a time; here it meets a model.
"""
