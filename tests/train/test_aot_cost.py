import numpy as np
import pytest

from train.aot.collectives import TpuSlice
from train.aot.cost import estimate_cost
from train.aot.hlo import parse_program
from train.aot.instruction_cost import EFFICIENCY
from train.flops import V5E

HEADER = "HloModule jit_step, is_scheduled=true\n\n"
ADD = """%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %sum = f32[] add(%l, %r)
}

%work (w: f32[8]) -> f32[8] {
  %w = f32[8]{0} parameter(0)
  ROOT %negative = f32[8]{0} negate(%w)
}

"""
BYTES = 4 * 2**20  # of f32[1048576]
LINK = 2 * BYTES / 2 / V5E.link_bandwidth  # all-reduce of two: 2 (n - 1) / n on one link


def where():
    return TpuSlice(V5E, {"data": 2}, np.asarray([[0, 0, 0, 0], [1, 0, 0, 0]]))


def cycles(count):
    return f'backend_config={{"window_config":{{"estimated_cycles":"{count}"}}}}'


def work(name, operand, count):
    return f"  %{name} = f32[8]{{0}} fusion(%{operand}), kind=kLoop, calls=%work, {cycles(count)}\n"


def entry(body, root="x"):
    return f"ENTRY %main (x: f32[1048576]) -> f32[8] {{\n  %x = f32[1048576]{{0}} parameter(0)\n{body}\n}}\n"


def cost(text):
    return estimate_cost(parse_program(HEADER + ADD + text), where())


def seconds(count):
    return count / V5E.clock


def loop(name, body, turns, inner):
    """A loop over `body`, whose instructions are `inner`, with its condition."""
    return f"""%{body} (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %p = (s32[], f32[8]{{0}}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %v = f32[8]{{0}} get-tuple-element(%p), index=1
{inner}  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[8]{{0}}) tuple(%next, %v)
}}

%{body}_condition (q: (s32[], f32[8])) -> pred[] {{
  %q = (s32[], f32[8]{{0}}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %limit = s32[] constant({turns})
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}}

"""


def run(body, start="v"):
    """The instructions that run a loop's body."""
    return (
        f"  %zero_{body} = s32[] constant(0)\n"
        f"  %begin_{body} = (s32[], f32[8]{{0}}) tuple(%zero_{body}, %{start})\n"
        f"  %while_{body} = (s32[], f32[8]{{0}}) while(%begin_{body}), condition=%{body}_condition, body=%{body}\n"
    )


def test_cycles_add_up_at_the_chips_clock():
    found = cost(entry(work("a", "x", 1500) + work("b", "a", 3000)))
    assert (found.cycles, found.seconds) == (4500, pytest.approx(3e-6))
    assert found.seconds == found.compiler


def test_nested_loops_multiply():
    inner = loop("inner", "inner", 5, work("c", "v", 100))
    outer = loop("outer", "outer", 3, run("inner") + work("d", "v", 10))
    found = cost(inner + outer + entry(run("outer", start="x") + work("e", "x", 1)))
    assert found.cycles == 3 * (5 * 100 + 10) + 1
    assert found.seconds == pytest.approx(seconds(found.cycles))
    assert found.operations["c"].runs == 15
    assert found.operations["c"].seconds == pytest.approx(seconds(1500))
    assert found.unknown_loops == []


def test_a_loop_of_unknown_length_is_counted_once_and_named():
    text = loop("l", "l", 7, work("c", "v", 100)).replace("direction=LT", "direction=NE")
    found = cost(text + entry(run("l", start="x")))
    assert (found.cycles, found.unknown_loops) == (100, ["while_l"])


def test_products_in_fusions_and_loops_are_counted():
    product = """%matrix (m: f32[8,16], n: f32[16,4]) -> f32[8,4] {
  %m = f32[8,16]{1,0} parameter(0)
  %n = f32[16,4]{1,0} parameter(1)
  ROOT %c = f32[8,4]{1,0} dot(%m, %n), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

"""
    inner = (
        "  %m2 = f32[8,16]{1,0} parameter(1)\n  %n2 = f32[16,4]{1,0} parameter(2)\n"
        f"  %f = f32[8,4]{{1,0}} fusion(%m2, %n2), kind=kOutput, calls=%matrix, {cycles(10)}\n"
    )
    found = cost(product + loop("l", "l", 6, inner) + entry(run("l", start="x")))
    assert found.flops == 6 * 2 * 8 * 16 * 4


REDUCE = "f32[1048576]{0} all-reduce(%x), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%add"


def test_a_collective_alone_is_waited_for():
    found = cost(entry(work("a", "x", 1500) + f"  %r = {REDUCE}\n"))
    assert found.waiting_links == pytest.approx(LINK)
    assert found.seconds == pytest.approx(LINK + 1e-6)
    ((key, sent),) = found.collectives.items()
    assert key == ("all-reduce", ("data",))
    assert (sent.runs, sent.bytes, sent.overlapped) == (1, BYTES, 0)


def pair(between):
    start = REDUCE.replace("all-reduce(", "all-reduce-start(")
    done = "  %done = f32[1048576]{0} all-reduce-done(%start)\n"
    return entry(f"  %start = {start}\n{between}{done}")


def test_work_between_start_and_done_hides_a_collective():
    little, much = round(LINK * V5E.clock / 4), round(LINK * V5E.clock * 2)
    found = cost(pair(work("a", "x", little)))
    assert found.seconds == pytest.approx(LINK)
    assert found.waiting_links == pytest.approx(LINK - seconds(little))
    found = cost(pair(work("a", "x", much)))
    assert found.seconds == pytest.approx(seconds(much))
    assert found.waiting_links == 0.0
    (sent,) = found.collectives.values()
    assert (sent.runs, sent.bytes, sent.overlapped) == (1, BYTES, 1)
    assert sent.seconds == pytest.approx(LINK)


def test_a_collective_that_fusions_carry_is_counted_once():
    # As the TPU has it: a fusion that starts it, one that goes on with it beside a product, one that ends it.
    def carrier(name):
        head = f"%{name} (x: f32[1048576]) -> f32[1048576] {{\n  %x = f32[1048576]{{0}} parameter(0)\n"
        return f"{head}  ROOT %r = {REDUCE}\n}}\n\n"

    carriers = "".join(map(carrier, ("begins", "goes_on", "ends")))
    step = "  %{} = f32[1048576]{{0}} fusion(%{}), kind=kCustom, calls=%{}"
    body = "\n".join(
        (
            step.format("start", "x", "begins"),
            step.format("middle", "start", "goes_on") + ", " + cycles(1500),
            step.format("done", "middle", "ends"),
        )
    )
    found = cost(carriers + entry(body))
    (sent,) = found.collectives.values()
    assert (sent.runs, sent.bytes, sent.overlapped) == (1, BYTES, 1)
    assert found.seconds == pytest.approx(LINK)
    assert found.waiting_links == pytest.approx(LINK - 1e-6)
    assert found.roofline == 0.0


def test_a_collective_of_the_sparse_cores_is_hidden_too():
    # As on a tpu7x: a call of another thread, made ready and done with by calls that do nothing.
    there = (
        f"%there (x: f32[1048576]) -> f32[1048576] {{\n  %x = f32[1048576]{{0}} parameter(0)\n  ROOT %r = {REDUCE}\n"
    )
    ready = '  %p = s32[4096]{0} custom-call(), custom_call_target="PrepareAsyncCallStart"\n'
    start = "  %s = ((f32[1048576]{0}), f32[1048576]{0}) call-start(%x), to_apply=%there\n"
    done = "  %d = f32[1048576]{0} call-done(%s)\n"
    found = cost(there + '}, execution_thread="sparsecore"\n\n' + entry(ready + start + work("a", "x", 1500) + done))
    (sent,) = found.collectives.values()
    assert (sent.runs, sent.bytes, sent.overlapped) == (1, BYTES, 1)
    assert found.seconds == pytest.approx(LINK)
    assert found.waiting_links == pytest.approx(LINK - 1e-6)
    assert found.roofline == found.waiting_memory == 0.0


def test_collectives_wait_in_line_for_the_links():
    second = REDUCE.replace("channel_id=1", "channel_id=2").replace("all-reduce(", "all-reduce-start(")
    text = pair(f"  %again = {second}\n").replace(
        "%done = ", "%other = f32[1048576]{0} all-reduce-done(%again)\n  %done = "
    )
    assert cost(text).seconds == pytest.approx(2 * LINK)


def test_a_copy_between_memories_takes_the_bandwidth():
    copy = "(f32[1048576]{0:S(1)}, f32[1048576]{0}, u32[]{:S(2)}) copy-start(%x)"
    found = cost(entry(f"  %c = {copy}\n  %d = f32[1048576]{{0:S(1)}} copy-done(%c)\n"))
    assert found.waiting_memory == pytest.approx(BYTES / V5E.hbm_bandwidth)
    part = "((f32[1048576]{0}), f32[262144]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:262144]}"
    found = cost(entry(f"  %c = {part}\n  %d = f32[262144]{{0:S(1)}} slice-done(%c)\n"))
    assert found.waiting_memory == pytest.approx(BYTES / 4 / V5E.hbm_bandwidth, rel=1e-5)


def test_the_time_of_a_kernel_follows_from_its_statement_or_its_bytes():
    call = '  %k = f32[1048576]{0} custom-call(%x), custom_call_target="tpu_custom_call"'
    found = cost(entry(call))
    assert found.roofline == found.seconds == pytest.approx(2 * BYTES / V5E.hbm_bandwidth / EFFICIENCY)
    assert found.operations["k"].basis == "roofline"
    stated = cost(entry(call + ', backend_config={"cost_estimate":{"flops":"1000000000000","bytes_accessed":"5"}}'))
    assert stated.roofline == pytest.approx(1e12 / V5E.peak_flops / EFFICIENCY)
    vectors = cost(entry(call + ', backend_config={"cost_estimate":{"flops":"5","transcendentals":"1000000000000"}}'))
    assert vectors.roofline == pytest.approx(1e12 / (8 * 128 * 4 * 1.5e9) / EFFICIENCY)
    buffer = cost(entry('  %b = f32[1048576]{0} custom-call(), custom_call_target="AllocateBuffer"'))
    assert buffer.seconds == 0.0


ROWS = """%rows (t: f32[30000,64], i: s32[16]) -> f32[16,64] {
  %t = f32[30000,64]{1,0} parameter(0)
  %i = s32[16]{0} parameter(1)
  ROOT %g = f32[16,64]{1,0} gather(%t, %i), offset_dims={1}
}

%sums (t: f32[30000,64], i: s32[16], u: f32[16,64]) -> f32[30000,64] {
  %t = f32[30000,64]{1,0} parameter(0)
  %i = s32[16]{0} parameter(1)
  %u = f32[16,64]{1,0} parameter(2)
  ROOT %s = f32[30000,64]{1,0} scatter(%t, %i, %u), to_apply=%add
}

"""


def test_a_table_is_not_moved_for_its_rows():
    table = "  %t = f32[30000,64]{1,0} parameter(1)\n  %i = s32[16]{0} parameter(2)\n"
    read = "  %g = f32[16,64]{1,0} fusion(%t, %i), kind=kCustom, calls=%rows\n"
    rows = 16 * 64 * 4
    found = cost(ROWS + entry(table + read))
    assert found.roofline == pytest.approx(2 * rows / V5E.hbm_bandwidth / EFFICIENCY)
    write = "  %s = f32[30000,64]{1,0} fusion(%t, %i, %g), kind=kCustom, calls=%sums\n"
    both = cost(ROWS + entry(table + read + write))
    assert both.roofline - found.roofline == pytest.approx(3 * (rows + 16 * 4) / V5E.hbm_bandwidth / EFFICIENCY)


def test_the_slowest_branch_of_a_conditional_counts():
    def branch(name, count):
        return (
            f"%{name} (x: f32[8]) -> f32[8] {{\n  %x = f32[8]{{0}} parameter(0)\n{work(f'in_{name}', 'x', count)}}}\n\n"
        )

    body = "  %p = s32[] constant(0)\n  %i = f32[8]{0} conditional(%p, %x, %x), branch_computations={%left, %right}\n"
    found = cost(branch("left", 100) + branch("right", 700) + entry(body))
    assert (found.cycles, found.conditionals) == (700, ["i"])
    assert "in_left" not in found.operations
