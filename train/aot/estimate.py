"""All that is estimated of a step, in one record."""

import dataclasses
import math

from train.aot import cost, hlo
from train.aot.collectives import Slice
from train.aot.compile import Compiled
from train.aot.layout import Layout
from train.aot.memory import Memory
from train.chips import Chip
from train.flops import train_flops


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Of one step; nothing in it was measured but the compiler's own time."""

    topology: str
    chip: Chip
    mesh: dict[str, int]
    memory: Memory
    cost: cost.Cost
    layout: Layout
    tokens: int
    """Of a step, padding left out, over all devices."""
    model_flops: float
    """Of a step over all devices, as `train.flops` counts them."""
    compile_seconds: float

    @property
    def devices(self) -> int:
        """In the mesh."""
        return math.prod(self.mesh.values())

    @property
    def tokens_per_second(self) -> float:
        """Over all devices."""
        return self.tokens / self.cost.seconds

    @property
    def mfu(self) -> float:
        """Model FLOPs over what the devices could do at their peak."""
        peak = self.devices * self.chip.peak_flops / self.chip.devices
        return self.model_flops / self.cost.seconds / peak


def estimate(compiled: Compiled, topology: str, chip: Chip) -> Estimate:
    """Reads the compiled program."""
    mesh = compiled.placement.mesh
    memory = Memory.of(
        compiled.executable,
        compiled.state,
        compiled.shardings,
        compiled.batch,
        compiled.placement.batch_sharding,
        chip.hbm_bytes / chip.devices,
    )
    program, where = hlo.parse(compiled.executable.as_text()), Slice.of(chip, mesh)
    return Estimate(
        topology=topology,
        chip=chip,
        mesh=dict(mesh.shape),
        memory=memory,
        cost=cost.estimate(program, where),
        layout=Layout.of(program, where, rows=compiled.rows, parameters=compiled.state.params, batch=compiled.batch),
        tokens=compiled.token_counts.tokens,
        model_flops=train_flops(compiled.objective.config, **dataclasses.asdict(compiled.token_counts)),
        compile_seconds=compiled.seconds,
    )
