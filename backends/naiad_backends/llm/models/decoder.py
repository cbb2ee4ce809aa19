"""The dense decoder: every switch of `Architecture` at its place, on any device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from naiad_backends.llm.checkpoint.weights import Checkpoint, Weight
from naiad_backends.llm.models.operators import AttentionLayer, Operators

Linear = Callable[[Tensor], Tensor]
"""x [T, columns] -> [T, rows]."""

MakeLinear = Callable[[Sequence[Weight], Sequence[Weight]], Linear]
"""Weights whose rows follow each other, and as many biases or none."""

MakeTensor = Callable[[Weight], Tensor]
"""A weight on the runner's device: an embedding in its own type, a norm in float32."""


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. A norm that the architecture does not have is None."""

    attention: AttentionLayer
    qkv: Linear
    o: Linear
    gate_up: Linear
    down: Linear
    attn_norm: Tensor | None
    post_attn_norm: Tensor | None
    mlp_norm: Tensor | None
    post_mlp_norm: Tensor | None


class Decoder:
    """linear, tensor: put weights on a device.  operators: of the same device.  dtype: of what
    flows between the layers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        linear: MakeLinear,
        tensor: MakeTensor,
        operators: Operators,
        dtype: torch.dtype,
    ) -> None:
        self.architecture = a = checkpoint.decoder
        self.operators = operators
        self.dtype = dtype
        load = _Loader(checkpoint, linear, tensor)
        self.embed = tensor(checkpoint.weight("embed"))
        self.blocks = [load.block(index) for index in range(len(a.layers))]
        self.norm = load.norm("norm")
        self.head = load.linear(["embed" if a.tied else "head"], biased=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens: [T], whose step the operators know.  The answer: [T, hidden_size], before the
        last norm."""
        a, operators = self.architecture, self.operators
        residual = torch.nn.functional.embedding(tokens, self.embed).to(self.dtype)
        if a.embedding_scale != 1:
            residual = residual * a.embedding_scale
        x: Tensor | None = None
        for block in self.blocks:
            normed, residual = self._enter(x, residual, block.attn_norm)
            x = block.o(operators.attention(block.qkv(normed), block.attention))
            x = self._leave(x, block.post_attn_norm)
            normed, residual = self._enter(x, residual, block.mlp_norm)
            x = block.down(operators.gate(block.gate_up(normed), a.activation))
            x = self._leave(x, block.post_mlp_norm)
        return residual if x is None else residual + x

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: some rows of `hidden`.  The answer: float32 [rows, vocab_size]."""
        a = self.architecture
        logits = self.head(self.operators.norm(hidden, self.norm, a.norm_eps)).float()
        if a.logit_scale != 1:
            logits = logits * a.logit_scale
        if a.logit_softcap:
            logits = a.logit_softcap * torch.tanh(logits / a.logit_softcap)
        return logits

    def _enter(
        self, x: Tensor | None, residual: Tensor, weight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add what the part before has computed, and norm the sum for the next one."""
        eps = self.architecture.norm_eps
        if x is None:
            return (
                residual if weight is None else self.operators.norm(residual, weight, eps)
            ), residual
        if weight is None:
            residual = residual + x
            return residual, residual
        return self.operators.add_norm(x, residual, weight, eps)

    def _leave(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """Norm and scale what a part has computed, before it is added."""
        if weight is not None:
            x = self.operators.norm(x, weight, self.architecture.norm_eps)
        scale = self.architecture.residual_scale
        return x if scale == 1 else x * scale


class _Loader:
    """Weights -> what the decoder computes with."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        linear: MakeLinear,
        tensor: MakeTensor,
    ) -> None:
        self.checkpoint = checkpoint
        self.architecture = checkpoint.decoder
        self.make_linear = linear
        self.make_tensor = tensor

    def block(self, index: int) -> Block:
        """One layer."""
        a, place = self.architecture, f"layers.{index}."
        layer = a.layers[index]
        attention = AttentionLayer(
            index=index,
            num_heads=a.num_heads,
            num_kv_heads=a.num_kv_heads,
            head_dim=a.head_dim,
            rope=layer.rope,
            window=layer.window,
            scale=a.attention_scale,
            softcap=a.score_softcap,
            eps=a.norm_eps,
            q_norm=self.norm(f"{place}q_norm") if a.qk_norm else None,
            k_norm=self.norm(f"{place}k_norm") if a.qk_norm else None,
        )
        return Block(
            attention=attention,
            qkv=self.linear([f"{place}{name}" for name in "qkv"], a.qkv_bias),
            o=self.linear([f"{place}o"], a.output_bias),
            gate_up=self.linear([f"{place}gate", f"{place}up"], a.mlp_bias),
            down=self.linear([f"{place}down"], a.mlp_bias),
            attn_norm=self.norm(f"{place}attn_norm") if a.pre_norm else None,
            post_attn_norm=self.norm(f"{place}post_attn_norm") if a.post_norm else None,
            mlp_norm=self.norm(f"{place}mlp_norm") if a.pre_norm else None,
            post_mlp_norm=self.norm(f"{place}post_mlp_norm") if a.post_norm else None,
        )

    def linear(self, names: Sequence[str], biased: bool) -> Linear:
        """Matrices one below the other."""
        weight = self.checkpoint.weight
        biases = [weight(f"{name}.bias") for name in names] if biased else []
        return self.make_linear([weight(name) for name in names], biases)

    def norm(self, name: str) -> Tensor:
        """A norm's weight, offset added."""
        weight: Tensor = self.make_tensor(self.checkpoint.weight(name)).float()
        return weight + self.architecture.norm_offset
