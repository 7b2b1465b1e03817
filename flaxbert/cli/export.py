"""`flaxbert export`: a model folder as a program for other runtimes."""

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from flaxbert.conversion.origin import resolve_checkpoint_path


@dataclasses.dataclass(frozen=True)
class Export:
    """A model as a program that runs without this library: StableHLO for XLA, or an ONNX graph.

    What was written is loaded again and run; the largest difference from the model is printed.
    """

    src: tyro.conf.Positional[str]
    """A folder, a file, Google's zip, or a name on the Hugging Face hub."""
    dst: tyro.conf.Positional[Path]
    """The folder to write; it must not be there yet, and appears when it is complete."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """stablehlo runs wherever jax does (cpu, cuda, tpu); onnx needs the extra [onnx] and runs in onnxruntime."""
    length: int | None = None
    """Of all inputs, for runtimes without dynamic shapes; any length without it."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the computation; of onnx float32 only."""
    revision: str | None = None
    """Of a model on the hub: a branch, tag or commit."""

    def run(self) -> int:
        """Exports."""
        from flaxbert.export import export_onnx, export_stablehlo

        with resolve_checkpoint_path(self.src, revision=self.revision) as folder:
            if self.format == "stablehlo":
                done = export_stablehlo(folder, self.dst, length=self.length, dtype=self.dtype)
            elif self.dtype != "float32":
                raise ValueError(f"dtype is {self.dtype}; onnx is written in float32")
            else:
                done = export_onnx(folder, self.dst, length=self.length)
        print(f"{self.dst}: {done.architecture} as {done.format}, {', '.join(done.files)}")
        for what, arrays in (("input", done.inputs), ("output", done.outputs)):
            for name, (dtype, shape) in arrays.items():
                print(f"  {what} {name}: {dtype} [{', '.join(map(str, shape))}]")
        print(f"  platforms: {', '.join(done.platforms)}")
        print(f"  readable by: {done.readable_by}")
        print(f"  loaded again, at most {done.parity:.3g} from the model on random input")
        return 0
