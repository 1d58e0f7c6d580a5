"""SliceGPT: rotate the residual stream to its principal components and delete the small ones.

Ashkboos, Croci, Gennari do Nascimento, Hoefler, Hensman, arXiv 2401.15024. Where norms are RMS
norms without gains, ‖x Q‖ = ‖x‖ for orthogonal Q, so that the stream may have a basis of its own
at every site if what reads and writes it follows and a matrix on the residual path changes basis
(section 3.2). With Q the eigenvectors of Σ xᵀ x over calibration tokens, largest eigenvalue first,
the first D columns keep as much of the stream's energy as any D directions do (section 3.3):

    W_read <- W_read Q_D,    W_write <- Q_Dᵀ W_write,    S <- Q_D,inᵀ Q_D,out,
    RMS norm: x / sqrt(Σ x² / D0 + eps), with D0 the width before slicing.

Sites are rotated one after another, and each basis comes from what the model sliced so far gives.

Deviations from the paper and the official code: a stream read by RMS norms keeps its mean (the
code subtracts the embeddings' mean there too, which changes the function), and epsilon stays that
of the checkpoint. `schedule="eigen"`, which the official code has not, chooses widths so that all
sites together lose the least share of their energy (of the unsliced model's stream) at the
parameters of the constant schedule. A mixture's experts read and write one width.
`rotation="random"` is a control: directions are deleted without looking.

    edited = SliceGPT(sparsity=0.25).apply(Job(model=model, batches=batches))
"""

from whet.compress.slicegpt.basis import discarded, orthogonal, principal
from whet.compress.slicegpt.method import SliceGPT

__all__ = ["SliceGPT", "discarded", "orthogonal", "principal"]
