"""Makes initial weights, and converts weights and configurations to and from the names that other programs use.

A state dict maps parameter names of `worker.model.gemma3` (the names of the official `gemma_pytorch`) to tensors.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from state.architecture import Architecture
from state.errors import DataError

INITIAL_STD = 0.02
"""Standard deviation of new matrices.

Source: GPT-2 (Radford et al. 2019), and the recipes of this size that publish it: OLMo 2, SmolLM2."""

INITIAL_CUTOFF = 3.0
"""New weights lie within this many standard deviations: one far outlier would dominate its row's logits for a long time.

Source: allenai/OLMo, `InitFnType.full_megatron`, cutoff factor 3."""

_RESIDUAL_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def parameter_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return every parameter's name and shape, in the order of the model."""
    width, head = arch.hidden_size, arch.head_dim
    shapes: dict[str, tuple[int, ...]] = {"embedder.weight": (arch.vocab_size, width)}
    for i in range(arch.num_layers):
        layer = f"model.layers.{i}."
        shapes[layer + "self_attn.qkv_proj.weight"] = ((arch.num_heads + 2 * arch.num_kv_heads) * head, width)
        shapes[layer + "self_attn.o_proj.weight"] = (width, arch.num_heads * head)
        shapes[layer + "self_attn.query_norm.weight"] = (head,)
        shapes[layer + "self_attn.key_norm.weight"] = (head,)
        shapes[layer + "mlp.gate_proj.weight"] = (arch.intermediate_size, width)
        shapes[layer + "mlp.up_proj.weight"] = (arch.intermediate_size, width)
        shapes[layer + "mlp.down_proj.weight"] = (width, arch.intermediate_size)
        shapes[layer + "input_layernorm.weight"] = (width,)
        shapes[layer + "post_attention_layernorm.weight"] = (width,)
        shapes[layer + "pre_feedforward_layernorm.weight"] = (width,)
        shapes[layer + "post_feedforward_layernorm.weight"] = (width,)
    shapes["model.norm.weight"] = (width,)
    return shapes


def initial_state(arch: Architecture, seed: int) -> dict[str, Tensor]:
    """Return initial weights on the CPU in fp32: a pure function of its arguments, bit for bit.

    Matrices are normally distributed with `INITIAL_STD`, cut at `INITIAL_CUTOFF`. Those that write to the residual stream
    (o_proj, down_proj) are divided by sqrt(2 * layers), so that the stream's variance does not grow with depth. Norm
    weights are zero, which means a factor of one.

    Every tensor has its own generator, seeded by (seed, name). So it depends neither on the order nor on other tensors.

    Source: Megatron-LM's scaled initialisation (Shoeybi et al. 2019), truncated as in OLMo's `full_megatron`.
    """
    return {name: _initial_tensor(arch, seed, name, shape) for name, shape in parameter_shapes(arch).items()}


def _initial_tensor(arch: Architecture, seed: int, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = torch.zeros(shape)
    if len(shape) == 1:
        return tensor
    std = INITIAL_STD
    if name.endswith(_RESIDUAL_OUTPUTS):
        std /= math.sqrt(2 * arch.num_layers)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    cut = INITIAL_CUTOFF * std
    return torch.nn.init.trunc_normal_(tensor, std=std, a=-cut, b=cut, generator=generator)


def from_gemma_pytorch(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the text model's weights from an official state dict, text-only or multimodal.

    Drops the rope tables (they are recomputed) and the vision tower.
    """
    dropped = ("local_freqs_cis", "global_freqs_cis", "freqs_cis")
    vision = ("siglip_vision_model.", "mm_")
    return {
        name.replace("text_token_embedder.", "embedder."): tensor
        for name, tensor in state.items()
        if name not in dropped and not name.startswith(vision)
    }


def to_transformers(state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Return the weights under the names of transformers' `Gemma3ForCausalLM`; tensors may share memory with `state`.

    Leaves out the output matrix, which is the embedding; transformers does the same when it saves.
    """
    q_rows, kv_rows = arch.num_heads * arch.head_dim, arch.num_kv_heads * arch.head_dim
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name == "embedder.weight":
            renamed["model.embed_tokens.weight"] = tensor
        elif name.endswith("qkv_proj.weight"):
            for part, rows in zip("qkv", torch.split(tensor, [q_rows, kv_rows, kv_rows]), strict=True):
                renamed[name.replace("qkv_proj", f"{part}_proj")] = rows
        else:
            renamed[name.replace("query_norm", "q_norm").replace("key_norm", "k_norm")] = tensor
    return renamed


def from_transformers(state: Mapping[str, Tensor], arch: Architecture) -> dict[str, Tensor]:
    """Return the weights of a `Gemma3ForCausalLM` state dict under our names, in the order of the model.

    Raises:
        DataError: a weight is missing.
    """
    weights: dict[str, Tensor] = {}
    for name in parameter_shapes(arch):
        try:
            if name == "embedder.weight":
                # The published 4b, 12b and 27b have 64 more rows, for images.
                weights[name] = state["model.embed_tokens.weight"][: arch.vocab_size]
            elif name.endswith("qkv_proj.weight"):
                weights[name] = torch.cat([state[name.replace("qkv_proj", f"{part}_proj")] for part in "qkv"])
            else:
                weights[name] = state[name.replace("query_norm", "q_norm").replace("key_norm", "k_norm")]
        except KeyError as missing:
            raise DataError(
                f"{missing.args[0]!r} is missing in the transformers weights; {name!r} is made from it",
                expected=f"the weights of a Gemma3ForCausalLM with {arch.num_layers} layers",
            ) from missing
    return weights


def gemma_pytorch_config(arch: Architecture) -> dict[str, Any]:
    """Return the fields of the official `GemmaConfig` for this architecture, enumerations by name."""
    local = ["LOCAL_SLIDING"] * arch.local_layers_per_global
    return {
        "architecture": "GEMMA_3",
        "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.max_position,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.intermediate_size,
        "head_dim": arch.head_dim,
        "rms_norm_eps": arch.rms_norm_eps,
        "dtype": "float32",
        "quant": False,
        "tokenizer": "tokenizer.model",
        "attn_types": [*local, "GLOBAL"],
        "sliding_window_size": arch.sliding_window,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "query_pre_attn_scalar": arch.query_scale_dim,
        "use_pre_ffw_norm": True,
        "use_post_ffw_norm": True,
        "rope_wave_length": {
            "LOCAL_SLIDING": _whole(arch.rope_local_theta),
            "GLOBAL": _whole(arch.rope_global_theta),
        },
        "use_qk_norm": True,
        "vision_config": None,
        "rope_scaling_factor": None if arch.rope_global_scaling == 1.0 else _whole(arch.rope_global_scaling),
    }


def transformers_config(arch: Architecture) -> dict[str, Any]:
    """Return the `config.json` of a `Gemma3ForCausalLM`, without token ids, which come from the tokenizer."""
    global_rope: dict[str, Any] = {"rope_type": "default", "rope_theta": arch.rope_global_theta}
    if arch.rope_global_scaling != 1.0:
        global_rope |= {"rope_type": "linear", "factor": arch.rope_global_scaling}
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "dtype": "float32",
        "vocab_size": arch.vocab_size,
        "max_position_embeddings": arch.max_position,
        "num_hidden_layers": arch.num_layers,
        "num_attention_heads": arch.num_heads,
        "num_key_value_heads": arch.num_kv_heads,
        "hidden_size": arch.hidden_size,
        "intermediate_size": arch.intermediate_size,
        "head_dim": arch.head_dim,
        "rms_norm_eps": arch.rms_norm_eps,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": arch.query_scale_dim,
        "sliding_window": arch.sliding_window,
        "layer_types": ["full_attention" if arch.is_global(i) else "sliding_attention" for i in range(arch.num_layers)],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": arch.rope_local_theta},
            "full_attention": global_rope,
        },
        "attention_bias": False,
        "attention_dropout": 0.0,
        "final_logit_softcapping": None,
        "attn_logit_softcapping": None,
        "use_bidirectional_attention": False,
        "tie_word_embeddings": True,
        "use_cache": True,
    }


def _whole(number: float) -> float | int:
    """Return whole numbers as int (10000 for 10000.0), because the official configuration holds integers."""
    return int(number) if number == int(number) else number
