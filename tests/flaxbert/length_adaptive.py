"""Length-adaptive inference in plain PyTorch, for any class of BERT or DistilBERT of `transformers`.

For each layer that runs: attention on all tokens left; the score of a token is the attention that it receives, summed
over heads and queries; the tokens with the highest scores go through the feed-forward half; the states of all tokens
are kept at their places in the input.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import transformers
from torch import nn


class TorchLayer(NamedTuple):
    """The modules of one layer, whatever the family calls them."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_output: nn.Linear
    attention_norm: nn.LayerNorm
    up: nn.Linear
    activation: Callable[[torch.Tensor], torch.Tensor]
    down: nn.Linear
    output_norm: nn.LayerNorm


def torch_layers(base: nn.Module) -> list[TorchLayer]:
    """Return the layers of a base model of `transformers`."""
    if isinstance(base, transformers.DistilBertModel):
        return [
            TorchLayer(
                layer.attention.q_lin,
                layer.attention.k_lin,
                layer.attention.v_lin,
                layer.attention.out_lin,
                layer.sa_layer_norm,
                layer.ffn.lin1,
                layer.ffn.activation,
                layer.ffn.lin2,
                layer.output_layer_norm,
            )
            for layer in base.transformer.layer
        ]
    return [
        TorchLayer(
            layer.attention.self.query,
            layer.attention.self.key,
            layer.attention.self.value,
            layer.attention.output.dense,
            layer.attention.output.LayerNorm,
            layer.intermediate.dense,
            layer.intermediate.intermediate_act_fn,
            layer.output.dense,
            layer.output.LayerNorm,
        )
        for layer in base.encoder.layer
    ]


class AdaptiveEncoder:
    """The forward pass of all layers, in place of the reference's.

    `states` are the tokens after each layer, in the order of the input; `gaps` the smallest difference between the
    score of a token kept and that of one dropped, for each choice.
    """

    def __init__(
        self,
        base: nn.Module,
        *,
        mask: torch.Tensor | None,
        length_config: Sequence[int] | None,
        layer_config: Sequence[int] | None,
        keep_cls: bool,
    ):
        self.layers, self.heads, self.mask = torch_layers(base), base.config.num_attention_heads, mask
        self.length_config, self.layer_config, self.keep_cls = length_config, layer_config, keep_cls
        self.gaps: list[float] = []
        self.states: list[torch.Tensor] = []

    def __call__(self, hidden_states: torch.Tensor, *args, **kwargs):
        x = hidden_states
        rows, length, _ = x.shape
        mask = torch.ones(rows, length) if self.mask is None else self.mask.reshape(rows, length)
        restored, index = x, torch.arange(length).expand(rows, length)
        for number, layer in enumerate(self.layers):
            if self.layer_config is not None and number not in self.layer_config:
                continue
            a, probabilities = self.attend(layer, x, mask)
            if self.length_config is not None:
                kept = self.choose(probabilities.sum((1, 2)), mask, min(self.length_config[number], length))
                a = torch.gather(a, 1, kept[..., None].expand(-1, -1, a.shape[2]))
                mask, index = torch.gather(mask, 1, kept), torch.gather(index, 1, kept)
            x = layer.output_norm(a + layer.down(layer.activation(layer.up(a))))
            restored = restored.scatter(1, index[..., None].expand(-1, -1, x.shape[2]), x)
            order = index.argsort(1)
            self.states.append(torch.gather(x, 1, order[..., None].expand(-1, -1, x.shape[2])))
        return transformers.modeling_outputs.BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=restored)

    def attend(self, layer: TorchLayer, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value = (
            part(x).reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for part in (layer.query, layer.key, layer.value)
        )
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        scores = scores + torch.where(mask != 0, 0.0, torch.finfo(torch.float32).min)[:, None, None]
        probabilities = scores.softmax(-1)
        context = (probabilities @ value).transpose(1, 2).reshape(x.shape)
        return layer.attention_norm(x + layer.attention_output(context)), probabilities

    def choose(self, scores: torch.Tensor, mask: torch.Tensor, count: int) -> torch.Tensor:
        # Padding comes last, in its order.
        scores = torch.where(mask != 0, scores.detach(), -1.0 - torch.arange(scores.shape[1]))
        if self.keep_cls:
            scores[:, 0] = torch.inf
        if count < scores.shape[1]:
            ranked = scores.sort(dim=1, descending=True).values
            self.gaps.append(float((ranked[:, count - 1] - ranked[:, count]).min()))
        return scores.topk(count, dim=1).indices
