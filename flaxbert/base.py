"""What every model class shares: how it runs, fresh plain parameters, and loading."""

import dataclasses
import enum
import functools
from pathlib import Path
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from flaxbert.config import BertConfig
from flaxbert.sharding import AxisRules


class Remat(enum.Enum):
    """What the backward pass keeps of a block: everything, only its matrix products, or only its input."""

    NONE = "none"
    DOTS = "dots"
    FULL = "full"


class Attention(enum.Enum):
    """How attention is computed, by Hugging Face's names for it where it has them.

    "eager": as products and sums that XLA compiles, on any device. "pallas": on TPUs as one kernel
    (`tpu_attention.py`), which keeps no scores in memory; "eager" on other devices, for lengths that are no multiple
    of 32 or above 512, and wherever attention weights are asked for, a head mask is given or only first positions are
    computed. The results are the same but for rounding. On several devices trace the model inside `sharding.placed`:
    the compiler, which cannot divide a kernel, would have each of them compute all rows.
    """

    EAGER = "eager"
    PALLAS = "pallas"


Model = TypeVar("Model", bound="PreTrainedModel")


class PreTrainedModel(nn.Module):
    """A stateless description of a model; `apply` is a pure function of the parameters.

    Attributes:
        config: the sizes.
        dtype: of the computation; parameters, softmax, norms and logits stay float32.
        scan: run the blocks as one loop (short compile) or unrolled; the same parameters either way.
        remat: what is recomputed in the backward pass.
        attn_implementation: see `Attention`.
        vocab_multiple: the vocabulary's axis is as long as the next multiple of it, for hardware and for devices that
            share it. Rows beyond `config.vocab_size` are 0 and stay so, their logits are the lowest float32, and
            files never hold them.
        origin: the folder it was loaded from, whose tokenizer `save_pretrained` takes along; two models that differ in
            it alone are equal.
    """

    config: BertConfig
    dtype: DTypeLike = jnp.float32
    scan: bool = True
    remat: Remat = Remat.NONE
    attn_implementation: Attention = Attention.EAGER
    vocab_multiple: int = 1
    origin: Path | None = dataclasses.field(default=None, compare=False, repr=False, kw_only=True)

    @nn.nowrap
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Fresh variables {"params": tree of plain arrays}, drawn by the reference's rule.

        Takes what flax's `Module.init` takes: a key, then example inputs of any length.
        """
        return nn.meta.unbox(super().init(*args, **kwargs))

    @nn.nowrap
    def parameter_shapes(self) -> dict[str, Any]:
        """The tree of parameters as shapes and dtypes; nothing is allocated."""
        return nn.meta.unbox(_boxed_shapes(cast(Any, self)))

    @nn.nowrap
    def logical_axes(self) -> dict[str, Any]:
        """The tree of parameters as tuples of logical axis names, one `PartitionSpec` a parameter."""
        return nn.get_partition_spec(_boxed_shapes(cast(Any, self)))

    @property
    def padded_vocab_size(self) -> int:
        """How long the vocabulary's axis of parameters and logits is."""
        return -(-self.config.vocab_size // self.vocab_multiple) * self.vocab_multiple

    @property
    def example_ids(self) -> np.ndarray:
        """The smallest input, to initialise with."""
        return np.zeros((1, 1, 1) if self.takes_choices else (1, 1), np.int32)

    @property
    def takes_choices(self) -> bool:
        """Whether inputs are [B, C, T] instead of [B, T]."""
        return False

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        *,
        strict: bool = True,
        ignore_mismatched_sizes: bool = False,
        key: jax.Array | None = None,
        mesh: Mesh | None = None,
        rules: AxisRules | None = None,
        **attributes: Any,
    ) -> tuple[Model, dict[str, Any]]:
        """Loads a checkpoint: the model and its float32 parameters.

        Args:
            path: a folder with config.json and weights: safetensors, pytorch_model.bin (needs the extra `torch`),
                flax_model.msgpack, each in one file or several, or parameters of orbax, as a training run keeps them.
                Or that of a TensorFlow 1 checkpoint of google-research/bert (bert_config.json, index and data).
            strict: raise on any missing or unexpected weight (a pooler that the class does without is only named in
                a warning). False lets the *head* differ: parameters of this
                class's head that the file lacks are drawn afresh from `key`, weights of another head are left
                out, and both are named in a warning of the "flaxbert" logger.
            ignore_mismatched_sizes: draw afresh, and name in a warning, what has another shape in the file.
            key: for fresh parameters; `jax.random.key(0)` where None.
            mesh, rules: where the parameters are to live, each device reading its own part; one device without a mesh,
                `AxisRules()` without rules.
            **attributes: of the class: `dtype`, `scan`, `remat`, `attn_implementation`, `vocab_multiple`,
                `add_pooling_layer`; or `config` to replace the file's (another number of labels, say).

        Raises:
            FileNotFoundError, ValueError: one error that lists every missing, unexpected and mis-shaped name.
        """
        from flaxbert.families import family_of  # the model itself needs no reader of files
        from flaxbert.families.config_file import read_config
        from flaxbert.weights.load import load

        config = attributes.pop("config", None) or read_config(path, family_of(cls))
        home = Path(path) if Path(path).is_dir() else Path(path).parent
        model = cls(config, **{"origin": home, **attributes})
        how: dict[str, Any] = {"key": key, "mesh": mesh, "rules": rules}
        params = load(path, model, strict=strict, ignore_mismatched_sizes=ignore_mismatched_sizes, **how)
        return model, params


@functools.lru_cache(maxsize=16)
def _boxed_shapes(model: Any) -> dict[str, Any]:
    """Shapes with the names of their axes; tracing takes a tenth of a second or more, and a run asks several times."""
    return jax.eval_shape(functools.partial(nn.Module.init, model), jax.random.key(0), model.example_ids)["params"]
