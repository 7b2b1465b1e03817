import numpy as np
import pytest

from train.aot.collectives import HOP, TpuSlice, crossed_axes, parse_groups
from train.aot.hlo import parse_instruction
from train.flops import V5E, V5P

MESH = {"data": 4, "fsdp": 2, "tensor": 2}  # device = 4 * data + 2 * fsdp + tensor


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,4},{1,5}}, dimensions={0}", ((0, 4), (1, 5))),
        ("replica_groups={}, to_apply=%add", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("replica_groups=[2,4]<=[8], dimensions={2}", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("replica_groups=[4,2]<=[2,4]T(1,0), to_apply=%add", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", ((0, 1), (2, 3), (4, 5), (6, 7))),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, x={}", ((0, 1, 2, 3, 4, 5, 6, 7),)),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(0,2,1,3) {'a'}", ((0, 1), (2, 3))),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", ((0, 2), (1, 3), (4, 6), (5, 7))),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_groups_are_read_in_every_form(text, groups):
    assert parse_groups(text, devices=8) == groups


def test_an_unknown_form_is_an_error():
    with pytest.raises(ValueError, match="no replica_groups of a known form"):
        parse_groups("replica_groups=everyone", devices=8)


def test_a_collective_crosses_the_axes_along_which_its_groups_differ():
    assert crossed_axes(((0, 4, 8, 12),), MESH) == ("data",)
    assert crossed_axes(((0, 1), (2, 3)), MESH) == ("tensor",)
    assert crossed_axes(((0, 1, 2, 3), (4, 5, 6, 7)), MESH) == ("fsdp", "tensor")
    assert crossed_axes(((5, 6),), MESH) == ("fsdp", "tensor")  # a permutation that crosses two at once
    assert crossed_axes(((7,), (3,)), MESH) == ()


def grid(chip, mesh, *sizes):
    sizes = (*sizes, *(1,) * (4 - len(sizes)))
    places = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)
    return TpuSlice(chip, mesh, places)


def test_links_take_the_time_of_rings():
    whole, link = 64 * 2**20, V5E.link_bandwidth
    line = grid(V5E, {"data": 4, "model": 4}, 4, 4)
    row = (tuple(range(4)),)
    # Four of a dimension that does not close: the end receives three quarters through its one link.
    assert line.seconds_on_links("all-gather", row, whole) == pytest.approx(0.75 * whole / link)
    assert line.seconds_on_links("all-reduce", row, whole) == pytest.approx(2 * 0.75 * whole / link)
    ring = grid(V5E, {"data": 16, "model": 16}, 16, 16)
    row = (tuple(range(16)),)
    assert ring.seconds_on_links("all-gather", row, whole) == pytest.approx(15 / 16 * whole / (2 * link))
    assert ring.seconds_on_links("all-to-all", row, whole) == pytest.approx(15 / 64 * whole / (2 * link))
    everyone = (tuple(range(256)),)
    assert ring.seconds_on_links("all-gather", everyone, whole) == pytest.approx(255 / 256 * whole / (4 * link))
    # Half of a ring is a line.
    assert ring.seconds_on_links("all-gather", (tuple(range(8)),), whole) == pytest.approx(7 / 8 * whole / link)
    # v5p closes at multiples of 4, in three dimensions.
    cube = grid(V5P, {"data": 64}, 4, 4, 4)
    everyone = (tuple(range(64)),)
    expected = 63 / 64 * whole / (6 * V5P.link_bandwidth)
    assert cube.seconds_on_links("reduce-scatter", everyone, whole) == pytest.approx(expected)


def test_a_small_collective_takes_its_hops():
    ring = grid(V5E, {"data": 256}, 16, 16)
    assert ring.seconds_on_links("all-reduce", (tuple(range(256)),), 4) == pytest.approx(16 * HOP)
    assert ring.seconds_on_links("collective-permute", ((0, 1), (1, 2)), 4) == pytest.approx(HOP)
    assert ring.seconds_on_links("all-reduce", ((3,),), 4) == 0.0


def test_the_bytes_of_a_collective_are_those_of_the_whole_array():
    where = grid(V5E, {"data": 2, "fsdp": 2}, 2, 2)
    gather = parse_instruction("  %g = f32[8,4]{1,0} all-gather(%x), replica_groups=[2,2]<=[4], dimensions={0}")
    assert vars(where.collective(gather, 64))["bytes"] == 128
    scatter = parse_instruction("  %s = f32[4,4]{1,0} reduce-scatter(%x), replica_groups=[2,2]<=[2,2]T(1,0)")
    found = where.collective(scatter, 128)
    assert (found.kind, found.axes, found.bytes) == ("reduce-scatter", ("data",), 128)
    start = parse_instruction("  %t = (f32[4,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), replica_groups=[2,2]<=[4]")
    found = where.collective(start, 64)
    assert (found.kind, found.axes, found.bytes) == ("all-gather", ("fsdp",), 128)
    reduce = parse_instruction("  %r = (f32[4]{0}, bf16[8]{0}) all-reduce(%x, %y), replica_groups={}, to_apply=%add")
    assert where.collective(reduce, 32) == where.collective(reduce, 32, scattered=False)
    assert where.collective(reduce, 32).bytes == 32
    assert where.collective(reduce, 32, scattered=True).kind == "reduce-scatter"
