"""The cross-entropy loss and the embedding lookup of a language model whose embedding is also its output matrix.

The loss computes logits in chunks of positions, so that the logits of all positions never exist at once. Loss and lookup
share one gradient of the embedding: in the backward pass the loss comes first and fills it, the lookup comes last and adds
its rows. Autograd would make two gradients and add them: a second matrix of V x D that is cleared, written and read, which
costs 5 % of a step of the 50 M-parameter configuration.

Legend: M positions (batch x time), C positions of one chunk, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from worker.model.matmul import add_product_tn, product_nn_into, product_nt_into

_CPU_CHUNK_BYTES = 16 * 2**20
"""Size of one chunk of logits on a CPU: half of a usual third-level cache, so that the softmax reads it from there."""

_GPU_CHUNK_BYTES = 256 * 2**20
"""Size of one chunk of logits on a GPU: enough rows to keep it busy, 1024 with a vocabulary of 65 536."""

_SMALLEST_CHUNK = 256
"""In positions. Each chunk reads and writes the whole gradient of the embedding once, so there must not be many chunks."""


class EmbeddingGradient:
    """Carries the embedding's gradient from the loss to the lookup of the same step."""

    def __init__(self) -> None:
        self._gradient_VD: Tensor | None = None

    def leave(self, gradient_VD: Tensor) -> None:
        """Hand over the loss's part of the gradient."""
        self._gradient_VD = gradient_VD

    def take(self) -> Tensor:
        """Return the loss's part of the gradient, once.

        Raises:
            RuntimeError: it is missing, or it was taken before.
        """
        if self._gradient_VD is None:
            raise RuntimeError("the embedding's gradient can be taken once a step; compute the loss again")
        gradient_VD, self._gradient_VD = self._gradient_VD, None
        return gradient_VD


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_VD: Tensor, ids: Tensor, scale: float, shared: EmbeddingGradient) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.scale, ctx.shared = scale, shared
        return functional.embedding(ids, embedding_VD).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_x,) = grads
        (ids,) = ctx.saved_tensors
        gradient_VD: Tensor = ctx.shared.take()
        # First sum the rows of each id, in a fixed order. If each row were added to the matrix directly, threads would race
        # for the rows of frequent ids, and every run would round differently.
        seen_ids, row_of_id = ids.unique(return_inverse=True)
        grad_MD = (grad_x * ctx.scale).flatten(0, -2)
        rows = grad_MD.new_zeros(seen_ids.numel(), grad_MD.shape[-1]).index_add_(0, row_of_id.flatten(), grad_MD)
        gradient_VD.index_add_(0, seen_ids, rows)
        return gradient_VD, None, None, None


def shared_lookup(embedding_VD: Tensor, ids: Tensor, scale: float, shared: EmbeddingGradient) -> Tensor:
    """Return `scale * embedding[ids]`. The step's loss must be a `cross_entropy` with the same embedding and `shared`."""
    x: Tensor = _Lookup.apply(embedding_VD, ids, scale, shared)  # type: ignore[no-untyped-call]
    return x


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over chunks. Its forward pass computes the gradients as well.

    Otherwise the backward pass would need all chunks' logits again. Here each chunk's logits are used at once and then
    overwritten by the next chunk's. Backward only scales the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_MD: Tensor,
        embedding_VD: Tensor,
        targets_M: Tensor,
        num_targets: int,
        shared: EmbeddingGradient | None,
    ) -> Tensor:
        wants_h, wants_embedding, *_ = ctx.needs_input_grad
        grad_h_MD = torch.empty_like(h_MD) if wants_h else None
        grad_embedding_VD = torch.zeros_like(embedding_VD) if wants_embedding else None
        num_positions, vocab_size = h_MD.shape[0], embedding_VD.shape[0]
        chunk_bytes = _CPU_CHUNK_BYTES if h_MD.device.type == "cpu" else _GPU_CHUNK_BYTES
        chunk = min(num_positions, max(_SMALLEST_CHUNK, chunk_bytes // (4 * vocab_size)))
        logits = h_MD.new_empty(chunk, vocab_size)
        loss = torch.zeros((), dtype=torch.float32, device=h_MD.device)
        for start in range(0, num_positions, chunk):
            h_CD, targets_C1 = h_MD[start : start + chunk], targets_M[start : start + chunk, None]
            logits_CV = logits[: h_CD.shape[0]]
            product_nt_into(logits_CV, h_CD, embedding_VD)
            log_p_CV = logits_CV.float()
            torch.log_softmax(log_p_CV, dim=-1, out=log_p_CV)
            loss -= log_p_CV.gather(1, targets_C1).sum()
            if not (wants_h or wants_embedding):
                continue
            # The gradient of -log p(target) with respect to the logits is softmax - onehot(target).
            grad_CV = log_p_CV.exp_()
            grad_CV[torch.arange(len(h_CD), device=h_CD.device), targets_C1[:, 0]] -= 1.0
            grad_CV = grad_CV.to(h_MD.dtype)
            if grad_h_MD is not None:
                product_nn_into(grad_h_MD[start : start + chunk], grad_CV, embedding_VD)
            if grad_embedding_VD is not None:
                add_product_tn(grad_embedding_VD, grad_CV, h_CD)
        ctx.num_targets, ctx.shared = num_targets, shared
        ctx.gradients = grad_h_MD, grad_embedding_VD
        return loss / num_targets

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        (grad_loss,) = grads
        if ctx.gradients is None:
            raise RuntimeError("the loss's gradients can be used once; compute the loss again")
        grad_h_MD, grad_embedding_VD = ctx.gradients
        ctx.gradients = None
        scale = grad_loss / ctx.num_targets
        if grad_h_MD is not None:
            grad_h_MD.mul_(scale)
        if grad_embedding_VD is not None:
            grad_embedding_VD.mul_(scale)
            if ctx.shared is not None:
                ctx.shared.leave(grad_embedding_VD)
                grad_embedding_VD = None
        return grad_h_MD, grad_embedding_VD, None, None, None


def cross_entropy(
    h_MD: Tensor,
    embedding_VD: Tensor,
    targets_M: Tensor,
    num_targets: int,
    shared: EmbeddingGradient | None = None,
) -> Tensor:
    """Return the sum of `-log p(target)` over all positions, divided by `num_targets`, as an fp32 scalar.

    Probabilities are the softmax of `h @ embedding.T`. The divisor is the number of targets of the whole batch, not of one
    micro-batch, so that the gradients of micro-batches add up to those of the batch.

    Args:
        h_MD: Final hidden states.
        embedding_VD: The embedding, which is the output matrix as well.
        targets_M: Token ids.
        num_targets: The divisor.
        shared: Receives the embedding's gradient; the `shared_lookup` at the model's begin completes it. None: the
            gradient goes to autograd.
    """
    loss: Tensor = _ChunkedCrossEntropy.apply(h_MD, embedding_VD, targets_M, num_targets, shared)  # type: ignore[no-untyped-call]
    return loss
