"""Gemma 3 in plain PyTorch: trainable, with the results and the parameter names of the official implementation.

Legend: B batch, T position, D width, F feed-forward width, N query heads, K key/value heads, H head width, V vocabulary,
M positions of the whole batch (B x T).

Source: google/gemma_pytorch at 014acb7 (2025-03-12), whose outputs and gradients the tests compare with; "Gemma 3
Technical Report", arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from state.architecture import Architecture
from worker.model.attention import causal_attention, window_attention
from worker.model.loss import EmbeddingGradient, cross_entropy, shared_lookup
from worker.model.matmul import linear
from worker.model.memory_efficient_ops import gated_gelu, rms_norm
from worker.model.private_torch import let_backward_recompute


class RMSNorm(nn.Module):
    """Scales vectors to root mean square 1, then by `1 + weight`; computes in fp32 for any input dtype."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class Linear(nn.Module):
    """A linear layer without bias. Its weights are NaN until loaded, so that forgetting to load them shows in the loss."""

    def __init__(self, num_inputs: int, num_outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((num_outputs, num_inputs), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x @ weight.T` over the last dimension."""
        return linear(x, self.weight)


class Embedding(nn.Module):
    """The embedding matrix, which is also the output matrix; NaN until weights are loaded."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((vocab_size, width), float("nan")))

    @property
    def scale(self) -> float:
        """The factor of the embeddings: sqrt(D), rounded to their dtype as in the official code."""
        return torch.tensor(self.weight.shape[1] ** 0.5, dtype=self.weight.dtype).item()

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Return scaled embeddings."""
        return functional.embedding(input_ids_BT, self.weight) * self.scale


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys, over all positions or a sliding window."""

    def __init__(self, arch: Architecture, *, is_global: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = arch.num_heads, arch.num_kv_heads, arch.head_dim
        self.scale = arch.query_scale_dim**-0.5
        self.window = None if is_global else arch.sliding_window
        self.qkv_proj = Linear(arch.hidden_size, (arch.num_heads + 2 * arch.num_kv_heads) * arch.head_dim)
        self.o_proj = Linear(arch.num_heads * arch.head_dim, arch.hidden_size)
        self.query_norm = RMSNorm(arch.head_dim, arch.rms_norm_eps)
        self.key_norm = RMSNorm(arch.head_dim, arch.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Return the heads' outputs, projected to the width of the residual stream."""
        heads = self.qkv_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        q_BTNH, k_BTKH, v_BTKH = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=2)
        q_BNTH = rotate(self.query_norm(q_BTNH).transpose(1, 2), cos_TH, sin_TH)
        k_BKTH = rotate(self.key_norm(k_BTKH).transpose(1, 2), cos_TH, sin_TH)
        v_BKTH = v_BTKH.transpose(1, 2)
        if self.window is None:
            found_BNTH = causal_attention(q_BNTH, k_BKTH, v_BKTH, scale=self.scale)
        else:
            found_BNTH = window_attention(q_BNTH, k_BKTH, v_BKTH, window=self.window, scale=self.scale)
        out_BTD: Tensor = self.o_proj(found_BNTH.transpose(1, 2).flatten(2))
        return out_BTD


class FeedForward(nn.Module):
    """Gated feed-forward with the tanh form of GELU."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.gate_proj = Linear(arch.hidden_size, arch.intermediate_size)
        self.up_proj = Linear(arch.hidden_size, arch.intermediate_size)
        self.down_proj = Linear(arch.intermediate_size, arch.hidden_size)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return `down(gelu(gate(x)) * up(x))`."""
        gated_BTF = gated_gelu(self.gate_proj(x_BTD), self.up_proj(x_BTD))
        out_BTD: Tensor = self.down_proj(gated_BTF)
        return out_BTD


class DecoderLayer(nn.Module):
    """Attention, then feed-forward; each is normalised before and after, and added to the residual stream."""

    def __init__(self, arch: Architecture, *, is_global: bool) -> None:
        super().__init__()
        self.self_attn = Attention(arch, is_global=is_global)
        self.mlp = FeedForward(arch)
        self.input_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.pre_feedforward_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self.post_feedforward_layernorm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)

    def forward(self, x_BTD: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
        """Return the residual stream after this layer."""
        attended_BTD: Tensor = self.self_attn(self.input_layernorm(x_BTD), cos_TH, sin_TH)
        x_BTD = x_BTD + self.post_attention_layernorm(attended_BTD)
        thought_BTD: Tensor = self.mlp(self.pre_feedforward_layernorm(x_BTD))
        x_BTD = x_BTD + self.post_feedforward_layernorm(thought_BTD)
        return x_BTD  # noqa: RET504 - to the type checker, a sum with a module's result is Any


class Decoder(nn.Module):
    """All decoder layers and the final norm."""

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.layers = nn.ModuleList(DecoderLayer(arch, is_global=arch.is_global(i)) for i in range(arch.num_layers))
        self.norm = RMSNorm(arch.hidden_size, arch.rms_norm_eps)
        self._tables: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the normalised residual stream after the last layer."""
        local_table, global_table = self._rope_tables(x_BTD.shape[1], x_BTD.device)
        for i, layer in enumerate(self.layers):
            cos_TH, sin_TH = global_table if self.arch.is_global(i) else local_table
            x_BTD = layer(x_BTD, cos_TH, sin_TH)
        out_BTD: Tensor = self.norm(x_BTD)
        return out_BTD

    def _rope_tables(self, num_positions: int, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
        # Not a module's buffer, so that no checkpoint, cast or sharding touches the tables. They fit the longest sequence so
        # far, because tables for the longest possible one would take 1.1 GB (27b).
        if self._tables is None or len(self._tables[0][0]) < num_positions or self._tables[0][0].device != device:
            arch = self.arch
            self._tables = (
                rope_table(num_positions, arch.head_dim, arch.rope_local_theta, 1.0, device),
                rope_table(num_positions, arch.head_dim, arch.rope_global_theta, arch.rope_global_scaling, device),
            )
        return tuple((cos[:num_positions], sin[:num_positions]) for cos, sin in self._tables)


def rope_table(num_positions: int, head_dim: int, theta: float, scaling: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines of rotary position embedding, each [T, H] in fp32.

    The two halves of a head form the pairs (h, h + H/2). The sine of the first half is negated, so that a rotation is
    `x * cos + swap_halves(x) * sin`.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents / scaling
    # Always computed on the CPU: GPUs compute sines with other roundings, and all devices shall get the same table.
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], -1).to(device), torch.cat([-sin, sin], -1).to(device)


def rotate(x_BNTH: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Rotate every pair of a head by its position's angle, in fp32."""
    x = x_BNTH.float()
    first, second = x.chunk(2, dim=-1)
    return (x * cos_TH + torch.cat([second, first], -1) * sin_TH).type_as(x_BNTH)


class Gemma3(nn.Module):
    """A Gemma 3 language model whose parameters have the names of the official `gemma_pytorch` state dict.

    Its matrices are NaN until weights are loaded (`worker.model.weights.initial_state` makes new ones).
    """

    def __init__(self, arch: Architecture) -> None:
        super().__init__()
        self.arch = arch
        self.embedder = Embedding(arch.vocab_size, arch.hidden_size)
        self.model = Decoder(arch)

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """Return the final, normalised hidden states [B, T, D]; position t depends on the tokens up to and including t."""
        h_BTD: Tensor = self.model(self.embedder(input_ids_BT))
        return h_BTD

    def logits(self, input_ids_BT: Tensor) -> Tensor:
        """Return the next-token logits of every position, [B, T, V]. Training uses `loss`, which needs less memory."""
        return linear(self.hidden(input_ids_BT), self.embedder.weight)

    def loss(self, input_ids_BT: Tensor, target_ids_BT: Tensor, *, num_targets: int | None = None) -> Tensor:
        """Return the cross-entropy of the targets in nats, summed and divided by `num_targets`: an fp32 scalar.

        Args:
            input_ids_BT: Token ids of the input.
            target_ids_BT: The next token of each position.
            num_targets: The divisor. None: the number of targets of this call, so that the loss is their mean. With
                micro-batches, pass the number of the whole batch: losses and gradients then add up to the batch's.
        """
        embedding_VD, shared = self.embedder.weight, EmbeddingGradient()
        x_BTD = shared_lookup(embedding_VD, input_ids_BT, self.embedder.scale, shared)
        h_MD = self.model(x_BTD).flatten(0, 1)
        return cross_entropy(h_MD, embedding_VD, target_ids_BT.flatten(), num_targets or target_ids_BT.numel(), shared)

    def compile_layers(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Compile each decoder layer on its own; the names of parameters do not change.

        Embedding and loss stay eager. A model that is compiled as a whole gives other bits in each run, because it adds up
        the embedding's gradient in any order. A model of compiled layers gives the same bits.

        Args:
            say: Takes a line for the log.
        """
        let_backward_recompute(say)
        for layer in self.model.layers:
            layer.compile(dynamic=False)

    @torch.no_grad()
    def generate(self, prompt_ids_BT: Tensor, num_new_tokens: int) -> Tensor:
        """Return the continuation that takes the likeliest token each time (greedy): [B, num_new_tokens].

        Recomputes all positions for every token, without a cache: simple, and fast enough for short samples.
        """
        ids_BT = prompt_ids_BT
        for _ in range(num_new_tokens):
            last_BD = self.hidden(ids_BT)[:, -1]
            next_B1 = linear(last_BD, self.embedder.weight).argmax(-1, keepdim=True)
            ids_BT = torch.cat([ids_BT, next_B1], dim=1)
        return ids_BT[:, prompt_ids_BT.shape[1] :]
