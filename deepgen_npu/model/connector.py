"""The SCB connector (stacked channel bridging): from hidden states of the VLM to conditioning of the DiT.

Parameter names are those of ``connector/model.safetensors``, all sizes come from ``connector/config.json``.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import LayerNorm, Linear, Module, ModuleList, Parameter

from .float16 import layer_norm, scaled_linear
from .ops import attention


class ConnectorAttention(Module):
    """Bidirectional multi-head attention with neither mask nor positions: padding takes part."""

    def __init__(self, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.num_heads = num_attention_heads
        self.q_proj = Linear(hidden_size, hidden_size)
        self.k_proj = Linear(hidden_size, hidden_size)
        self.v_proj = Linear(hidden_size, hidden_size)
        self.out_proj = Linear(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[b, L, width] to [b, L, width]."""
        q, k, v = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1))  # [b, L, heads, d]
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(attention(q, k, v).flatten(2))


class ConnectorMLP(Module):
    """The feed-forward of a layer, with the tanh form of GELU."""

    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.fc1 = Linear(hidden_size, intermediate_size)
        self.fc2 = Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[b, L, width] to [b, L, width]."""
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate="tanh"))


class ConnectorLayer(Module):
    """A pre-norm transformer layer."""

    def __init__(self, hidden_size: int, intermediate_size: int, num_attention_heads: int, eps: float):
        super().__init__()
        self.layer_norm1 = LayerNorm(hidden_size, eps=eps)
        self.self_attn = ConnectorAttention(hidden_size, num_attention_heads)
        self.layer_norm2 = LayerNorm(hidden_size, eps=eps)
        self.mlp = ConnectorMLP(hidden_size, intermediate_size)

    def forward(self, hidden_states: Tensor, dtype: torch.dtype) -> Tensor:
        """[b, L, width] to [b, L, width], in `float16.sum_dtype` of ``dtype``, in which the weights compute."""
        hidden_states = hidden_states + self.self_attn(layer_norm(self.layer_norm1, hidden_states, dtype))
        return hidden_states + self.mlp(layer_norm(self.layer_norm2, hidden_states, dtype))


class ConnectorEncoder(Module):
    """The layers of the connector. Its attribute names are part of the parameter names."""

    def __init__(self, num_hidden_layers: int, **layer: Any):
        super().__init__()
        self.layers = ModuleList(ConnectorLayer(**layer) for _ in range(num_hidden_layers))

    def forward(self, hidden_states: Tensor, dtype: torch.dtype) -> Tensor:
        """[b, L, width] to [b, L, width]; dtypes as in a layer."""
        for layer in self.layers:
            hidden_states = layer(hidden_states, dtype)
        return hidden_states


class Connector(Module):
    """The learned meta queries, the encoder and its three projectors.

    Args:
        config: The settings of ``connector/config.json`` (`checkpoint.schema.settings`).
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        self.config = config
        encoder = config["connector"]
        self.num_queries: int = config["num_queries"]
        self.meta_queries = Parameter(torch.empty(self.num_queries, config["llm_hidden_size"]))
        self.projector_1 = Linear(config["projector_1_in"], config["projector_1_out"])
        self.connector = ConnectorEncoder(
            num_hidden_layers=encoder["num_hidden_layers"],
            hidden_size=encoder["hidden_size"],
            intermediate_size=encoder["intermediate_size"],
            num_attention_heads=encoder["num_attention_heads"],
            eps=encoder["layer_norm_eps"],
        )
        self.projector_2 = Linear(config["projector_2_in"], config["projector_2_out"])
        self.projector_3 = Linear(config["projector_3_in"], config["projector_3_out"])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.meta_queries.dtype

    def forward(self, stacked: Tensor) -> tuple[Tensor, Tensor]:
        """From stacked hidden states to the conditioning of the DiT.

        Args:
            stacked: [b, L + queries, states x hidden], hidden states concatenated channel-wise, deepest first, in
                `float16.sum_dtype` of the weights.

        Returns:
            The sequence [b, L + queries, joint_attention_dim] and the pooled vector
            [b, pooled_projection_dim], in the dtype of the weights. The mean runs over every position, padding
            included, as in training.
        """
        dtype = self.dtype
        hidden_states = self.connector(
            scaled_linear(self.projector_1, stacked, dtype), dtype
        )  # [b, L + queries, width]
        sequence = scaled_linear(self.projector_3, hidden_states, dtype)
        pooled = scaled_linear(self.projector_2, hidden_states.mean(dim=1), dtype)
        return sequence.to(dtype), pooled.to(dtype)
