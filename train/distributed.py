"""The devices of a run: its mesh, and batches and state placed on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from flaxbert.base import PreTrainedModel
from flaxbert.sharding import AxisRules, batch_sharding, make_mesh, replicated, tree_shardings


@dataclasses.dataclass(frozen=True)
class Placement:
    """A mesh and the rules that place arrays on it."""

    mesh: Mesh
    rules: AxisRules = AxisRules()

    @classmethod
    def all_devices(cls, *, batch_size: int) -> "Placement":
        """Every device on the data axis.

        Raises:
            ValueError: the batch does not divide evenly over the devices.
        """
        placement = cls(make_mesh())
        count = placement.mesh.size
        if batch_size % count:
            raise ValueError(
                f"the batch size {batch_size} does not divide over {count} devices; use a multiple of {count}"
            )
        return placement

    def batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """The host's rows as global arrays, split over the data axis."""
        sharding = self.batch_sharding
        return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}

    @property
    def batch_sharding(self) -> NamedSharding:
        """Rows split over the data axis."""
        return batch_sharding(self.mesh, self.rules)

    @property
    def replicated(self) -> NamedSharding:
        """Whole on every device."""
        return replicated(self.mesh)

    def parameters(self, model: PreTrainedModel) -> Any:
        """A sharding for every parameter of the model."""
        return tree_shardings(self.mesh, self.rules, model.logical_axes())
