import jax
import numpy as np
import pytest

from train.aot.collectives import TpuSlice
from train.aot.hlo import parse_program
from train.aot.sharding_check import ShardingCheck, gathered_parameters, whole_batches
from train.flops import V5E

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
KERNEL = (12, 768, 3072)  # of a stack of 12 layers
DATA, FSDP, TENSOR = ("{{0,4},{1,5},{2,6},{3,7}}", "{{0,2},{1,3},{4,6},{5,7}}", "{{0,1},{2,3},{4,5},{6,7}}")


def where(**sizes):
    mesh = MESH | sizes
    places = np.stack(np.unravel_index(np.arange(8), (2, 4, 1, 1)), axis=1)
    return TpuSlice(V5E, mesh, places)


FUSED = """%fused (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
{inside}  ROOT %r = f32[8]{{0}} copy(%p)
}}

"""


def program(*lines, inside=""):
    body = "".join(f"  {line}\n" for line in (*lines, "%f = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused"))
    main = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n{body}}}\n"
    return parse_program(FUSED.format(inside=inside) + main)


def gather(shape, groups):
    return f"%g = {shape} all-gather(%x), replica_groups={groups}, dimensions={{0}}"


def gathered(shape, groups):
    found = gathered_parameters(program(gather(shape, groups)), where(), [KERNEL, (768,)])
    return [(it.shape.dims, it.axes) for it in found]


@pytest.mark.parametrize(
    "dims", [(12, 768, 3072), (768, 3072), (1, 3072, 768), (384, 3072), (12, 768, 1536)], ids=lambda dims: str(dims)
)
def test_a_parameter_gathered_beyond_fsdp_is_found(dims):
    shape = f"bf16[{','.join(map(str, dims))}]{{0}}"
    assert gathered(shape, DATA) == [(dims, ("data",))]
    assert gathered(shape, TENSOR) == [(dims, ("tensor",))]
    assert gathered(shape, "{}") == [(dims, ("data", "fsdp", "tensor"))]
    assert gathered(shape, FSDP) == []


def test_activations_and_vectors_may_be_gathered():
    assert gathered("bf16[32,128,768]{2,1,0}", TENSOR) == []
    assert gathered("f32[768]{0}", DATA) == []


def test_a_gather_inside_a_fusion_is_found():
    inside = "  " + gather("bf16[768,3072]{1,0}", DATA).replace("%x", "%p") + "\n"
    assert len(gathered_parameters(program(inside=inside), where(), [KERNEL])) == 1


def whole(*lines, rows=24, inside="", **sizes):
    found = whole_batches(program(*lines, inside=inside), where(**sizes), rows=rows, parameters=[KERNEL, (24, 64)])
    return [(it.shape.dims, it.axes) for it in found]


def test_an_activation_of_all_rows_is_found():
    assert whole("%a = bf16[24,128,768]{2,1,0} copy(%x)") == [((24, 128, 768), ("data", "fsdp"))]
    assert whole("%a = f32[12,16,128,24]{2,1,0} copy(%x)", fsdp=1) == [((12, 16, 128, 24), ("data",))]
    # One of each shape, also where it is one of several results.
    several = "= (f32[8]{0}, bf16[24,128]{1,0}) custom-call(%x)"
    assert len(whole(f"%a {several}", f"%b {several}")) == 1


def test_what_is_split_or_no_activation_is_not_found():
    assert whole("%a = bf16[6,128,768]{2,1,0} copy(%x)") == []
    assert whole("%a = f32[24]{0} copy(%x)") == []  # a number a row: the mean of a loss
    assert whole("%a = f32[24,64]{1,0} copy(%x)") == []  # a parameter
    assert whole("%a = bf16[24,128,768]{2,1,0} bitcast(%x)") == []  # only another name
    assert whole("%a = bf16[24,768]{1,0:S(3)} slice-done(%x)") == []  # tokens of one device, as many by chance
    assert whole(inside="  %a = bf16[24,128,768]{2,1,0} broadcast(%p)\n") == []  # never in memory
    assert whole("%a = bf16[24,128,768]{2,1,0} copy(%x)", data=1, fsdp=1, tensor=8) == []  # no axis should split it


def test_an_ambiguous_number_of_rows_gives_none():
    def found(rows, length):
        batch = {"input_ids": jax.ShapeDtypeStruct((rows, length), np.int32)}
        parameters = {"kernel": jax.ShapeDtypeStruct(KERNEL, np.float32)}
        array = f"%a = bf16[{rows},5,64]{{2,1,0}} copy(%x)"
        return ShardingCheck.of(program(array), where(), rows=rows, parameters=parameters, batch=batch).whole_batches

    assert [it.shape.dims for it in found(24, 128)] == [(24, 5, 64)]
    assert found(3072, 128) is None  # a size of the parameter
    assert found(6144, 128) is None  # twice a size: two dropouts' masks side by side
    assert found(128, 128) is None  # the length of a row
    assert found(24, 4) is None  # four devices share the rows: 6 rows x 4 tokens on each
