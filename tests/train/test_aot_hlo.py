import pytest

from train.aot.hlo import ArrayShape, parse_instruction, parse_program, parse_shapes
from train.aot.instruction_cost import matmul_flops, trip_count

# Lines of programs that the TPU compiler made of train steps, cut down; numbers are as it wrote them.
LAYOUT = "(bf16[1,256,4,64]{1,3,2,0:T(8,128)(2,1)S(1)}, /*index=1*/f32[2,256]{1,0:T(2,128)}, u32[]{:S(2)})"
FUSION = (
    "  %fusion.614 = u32[2]{0:T(128)S(1)} fusion(%get-tuple-element.3953, /*index=1*/%get-tuple-element.3841), "
    'kind=kLoop, calls=%fused_computation.763.clone, metadata={op_name="jit(step)/jvp(Bert)/bert/squeeze" '
    'stack_frame_id=3}, backend_config={"flag_configs":[],"window_config":{"output_window_bounds":["1"],'
    '"estimated_cycles":"1828","iteration_bounds":["1"]}}'
)
LOOP = """HloModule jit_step, is_scheduled=true

FileNames
1 "/home/me/train/step.py"
2 "/home/me/flaxbert/layers.py"

FunctionNames
1 "train_step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=88 end_line=88 column=27 end_column=27}
2 {file_name_id=2 function_name_id=1 line=49 end_line=49 column=15 end_column=15}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %step = s32[] constant(2)
  %next = s32[]{:T(128)S(6)} add(%i, %step)
  %copied = s32[]{:T(128)} copy(%next)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%copied, %x)
}

%condition (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  %limit = s32[]{:T(128)} constant(11)
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8]) -> (s32[], f32[8]) {
  %a = f32[8]{0} parameter(0)
  %zero = s32[] constant(1)
  %begin = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[]{:T(128)}, f32[8]{0}) tuple(%begin, %a)
  ROOT %while = (s32[]{:T(128)}, f32[8]{0}) while(%tuple), condition=%condition, body=%body, metadata={stack_frame_id=2}
}
"""


def loop(text):
    program = parse_program(text)
    main = program.computations["main"]
    return program, main, main.by_name["while"]


def test_a_type_is_read_with_its_memory():
    assert parse_shapes(LAYOUT) == (
        ArrayShape("bf16", (1, 256, 4, 64), space=1),
        ArrayShape("f32", (2, 256)),
        ArrayShape("u32", (), space=2),
    )
    assert [shape.bytes for shape in parse_shapes(LAYOUT)] == [2 * 65536, 2048, 4]
    assert parse_shapes("s4[16]{0:T(8,128)E(4)}")[0].bytes == 8


def test_an_instruction_is_read():
    fusion = parse_instruction(FUSION)
    assert (fusion.name, fusion.opcode, fusion.root) == ("fusion.614", "fusion", False)
    assert fusion.operands == ("get-tuple-element.3953", "get-tuple-element.3841")
    assert fusion.called("calls") == "fused_computation.763.clone"
    assert fusion.estimated_cycles == 1828
    assert fusion.op_name == "jit(step)/jvp(Bert)/bert/squeeze"
    start = parse_instruction(f"  ROOT %copy-start.8 = {LAYOUT} copy-start(%x)")
    assert (start.opcode, start.operands, len(start.shapes), start.root) == ("copy-start", ("x",), 3, True)
    assert start.estimated_cycles is None


def test_what_is_no_instruction_is_an_error():
    with pytest.raises(ValueError, match="not an HLO instruction: 'nothing'"):
        parse_instruction("nothing")
    with pytest.raises(ValueError, match="no ENTRY"):
        parse_program("%c (p: f32[]) -> f32[] {\n  ROOT %p = f32[] parameter(0)\n}\n")


def test_an_instruction_names_its_source_lines_innermost_first():
    program, _, instruction = loop(LOOP)
    assert program.source(instruction) == ("/home/me/flaxbert/layers.py:49", "/home/me/train/step.py:88")
    assert program.source(program.computations["main"].root) == program.source(instruction)
    assert program.source(program.computations["main"].by_name["a"]) == ()


def test_a_loop_runs_until_its_counter_reaches_the_bound():
    # 1, 3, 5, 7, 9: below 11.
    assert trip_count(*loop(LOOP)) == 5
    assert trip_count(*loop(LOOP.replace("constant(11)", "constant(12)"))) == 6
    assert trip_count(*loop(LOOP.replace("constant(11)", "constant(1)"))) == 0


def test_the_compilers_note_on_a_loop_counts():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"24"}}')
    assert trip_count(*loop(noted)) == 24


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("direction=LT", "direction=NE"),
        ("%limit = s32[]{:T(128)} constant(11)", "%limit = s32[]{:T(128)} get-tuple-element(%q), index=1"),
        ("%next = s32[]{:T(128)S(6)} add", "%next = s32[]{:T(128)S(6)} multiply"),
        ("%zero = s32[] constant(1)", "%zero = s32[] parameter(1)"),
    ],
)
def test_a_loop_of_unknown_length_has_no_trip_count(old, new):
    assert old in LOOP
    assert trip_count(*loop(LOOP.replace(old, new))) is None


def product(result, left, right, rest):
    text = (
        "ENTRY %main (a: f32[], b: f32[]) -> f32[] {\n"
        f"  %a = {left} parameter(0)\n  %b = {right} parameter(1)\n  ROOT %c = {result} {rest}\n}}\n"
    )
    main = parse_program(text).computations["main"]
    return matmul_flops(main, main.root)


def test_products_are_counted_without_padding():
    dot = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
    assert product("f32[8,32]{1,0}", "f32[8,16]{1,0}", "f32[16,32]{1,0}", dot) == 2 * 8 * 16 * 32
    # BTD,DHK->BTHK with B 32, T 128, D 256, H 4, K 64 as the TPU compiler writes it: H is a padded window.
    heads = "convolution(%a, %b), window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f"
    shapes = "bf16[32,128,4,64]{1,3,2,0}", "bf16[32,128,256,1]{1,2,3,0}", "bf16[256,4,64,1]{0,2,1,3}"
    assert product(*shapes, heads) == 2 * 32 * 128 * 256 * 4 * 64
    # A plain one: 5 taps on 10 places at the same size lose 2 + 1 positions at either end.
    same = "convolution(%a, %b), window={size=5 pad=2_2}, dim_labels=b0f_0io->b0f"
    assert product("f32[3,10,7]{2,1,0}", "f32[3,10,6]{2,1,0}", "f32[5,6,7]{2,1,0}", same) == 2 * 3 * 6 * 7 * (50 - 6)
    # Stride 2, the last of five beyond the end; and a left side spread by 2: half of the taps meet a gap.
    strided = "convolution(%a, %b), window={size=2 stride=2}, dim_labels=b0f_0io->b0f"
    assert product("f32[1,5,1]{2,1,0}", "f32[1,8,1]{2,1,0}", "f32[2,1,1]{2,1,0}", strided) == 2 * 8
    spread = "convolution(%a, %b), window={size=2 lhs_dilate=2}, dim_labels=b0f_0io->b0f"
    assert product("f32[1,8,1]{2,1,0}", "f32[1,5,1]{2,1,0}", "f32[2,1,1]{2,1,0}", spread) == 2 * 8
