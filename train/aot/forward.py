"""Estimate of forward passes on a TPU slice: embeddings and classification of texts, their speed and their cost."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from flaxbert import PreTrainedModel, Remat, length_adaptive
from flaxbert.families import HeadKind, model_class
from flaxbert.layers import Params
from flaxbert.pipelines.sentence_embedding import Pooling, pool_tokens
from train.aot.collectives import TpuSlice
from train.aot.cost import Operation, estimate_cost
from train.aot.estimate import compile_lowered
from train.aot.estimate_report import costliest
from train.aot.hlo import parse_program
from train.config import Config
from train.distributed import Placement
from train.flops import Chip
from train.step import Batch

_HEADS = (HeadKind.NONE, HeadKind.SEQUENCE_CLASSIFICATION)
_COLUMNS = ("output", "length_config", "FLOPs", "time", "texts/s a chip", "tokens/s a chip", "MFU", "memory")


@dataclasses.dataclass(frozen=True)
class ForwardEstimate:
    """Estimate of one forward pass over a batch of texts without padding."""

    output: str
    """ "embeddings" (the mean of all token vectors) or "sequence classification"."""
    length_config: tuple[int, ...] | None
    """Tokens that each layer keeps; None keeps all."""
    texts: int
    """Rows of the batch, over all devices."""
    length: int
    """Tokens of a text."""
    chips: float
    seconds: float
    flops: float
    """FLOPs of the matrix products in the layers, over all devices."""
    mfu: float
    memory_bytes: int
    """Of one device."""
    costliest: list[Operation]

    @property
    def texts_per_second(self) -> float:
        """Return the throughput of one chip."""
        return self.texts / self.seconds / self.chips

    def cost_per_million_texts(self, price: float) -> float:
        """Return the price of the chips for a million texts, from that of one chip for an hour."""
        return 1e6 / self.texts_per_second / 3600 * price


def estimate_forward(
    config: Config, placement: Placement, chip: Chip, *, length_config: Sequence[int] = ()
) -> list[ForwardEstimate]:
    """Compile and estimate both outputs of the config's model, then both with a `length_config` if it is given.

    Rows are as long as the config's, and as many as its `run.batch_size`. As in the pipelines, parameters are float32
    and are cast to the config's dtype in each pass.

    Raises:
        ValueError: the config's model has no such outputs, or the lengths are not valid.
        DoesNotFit: a device has too little memory; the message states how much is missing.
    """
    spec = config.task.train_spec(config)
    ids = spec.batch.get("input_ids")
    if ids is None or ids.ndim != 2 or spec.config.is_decoder:
        raise ValueError("--forward estimates encoders of rows of tokens; give a config of another task")
    placement.check_rows("batch_size", len(ids))
    attributes: dict[str, Any] = {**config.model.attributes, "remat": Remat.NONE, "rules": placement.rules}
    points = [None, tuple(length_config)] if length_config else [None]
    return [
        _estimate(model_class(spec.config, head)(spec.config, **attributes), head, ids.shape, placement, chip, point)
        for point in points
        for head in _HEADS
    ]


def _estimate(
    model: PreTrainedModel,
    head: HeadKind,
    shape: tuple[int, int],
    placement: Placement,
    chip: Chip,
    length_config: tuple[int, ...] | None,
) -> ForwardEstimate:
    placement.check_model(model)
    rows, length = shape
    batch = {name: jax.ShapeDtypeStruct(shape, jnp.int32) for name in model.input_names}
    has_logits = head is not HeadKind.NONE

    def forward(params: Params, batch: Batch) -> Array:
        with placement.tracing():
            arguments: dict[str, Any] = {**batch, "length_config": length_config}
            output: Any = model.apply({"params": params}, **arguments)
        if has_logits:
            return output.logits
        return pool_tokens(output.last_hidden_state.astype(jnp.float32), batch["attention_mask"], Pooling.MEAN)

    shardings = (placement.parameters(model), placement.batch_sharding)
    jitted = jax.jit(forward, in_shardings=shardings, out_shardings=placement.batch_sharding)
    executable = compile_lowered(jitted.lower(model.parameter_shapes(), batch))
    cost = estimate_cost(parse_program(executable.as_text() or ""), TpuSlice.of(chip, placement.mesh))
    memory: Any = executable.memory_analysis()
    flops = rows * length_adaptive.flops(model.config, length, length_config, first_position_only=has_logits)
    chips = placement.mesh.size / chip.devices
    return ForwardEstimate(
        output=head.value,
        length_config=length_config,
        texts=rows,
        length=length,
        chips=chips,
        seconds=cost.seconds,
        flops=flops,
        mfu=flops / cost.seconds / (chips * chip.peak_flops),
        memory_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
        costliest=costliest(cost),
    )


def forward_table(estimates: Sequence[ForwardEstimate], topology: str, *, price: float | None = None) -> str:
    """Return a Markdown table; FLOPs and time of a `length_config` also as a share of those of all tokens."""
    first, full = estimates[0], {it.output: it for it in estimates if it.length_config is None}
    columns = (*_COLUMNS, *(() if price is None else (f"a million texts at {price:g} an hour",)))
    rows = [columns, ("---",) * len(columns)]
    for it in estimates:
        whole = full[it.output]
        shares = (
            ("", "") if it is whole else (f" ({it.flops / whole.flops:.2f})", f" ({it.seconds / whole.seconds:.2f})")
        )
        cells = (
            it.output,
            "all" if it.length_config is None else " ".join(map(str, it.length_config)),
            f"{it.flops:.3e}{shares[0]}",
            f"{it.seconds * 1e3:.2f} ms{shares[1]}",
            f"{it.texts_per_second:,.0f}",
            f"{it.texts_per_second * it.length:,.0f}",
            f"{it.mfu:.1%}",
            f"{it.memory_bytes / 2**30:.1f} GiB",
        )
        rows.append(cells if price is None else (*cells, f"{it.cost_per_million_texts(price):.3f}"))
    head = f"{topology}: {first.texts} texts of {first.length} tokens; all estimated from the compiled programs"
    return "\n".join([head, "", *(f"| {' | '.join(row)} |" for row in rows)])


def forward_json(estimates: Sequence[ForwardEstimate], topology: str, *, price: float | None = None) -> str:
    """Return the estimates under the key "estimated"."""
    estimated = [
        {
            **vars(it),
            "texts_per_second_per_chip": it.texts_per_second,
            "cost_per_million_texts": None if price is None else it.cost_per_million_texts(price),
        }
        for it in estimates
    ]
    return json.dumps({"topology": topology, "estimated": estimated}, indent=2, default=vars)
