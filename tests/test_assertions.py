"""No assertion of the test suite is true for every program: found by reading the syntax trees of all tests."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent
LIBRARIES = {"np", "jnp", "jax", "torch", "flaxbert"}  # an attribute of these, such as np.float32, is always true


def always_true(node: ast.expr) -> bool:
    """Return whether a condition is a class, a non-empty literal, or another expression that is true by its form."""
    match node:
        case ast.Constant(value):
            return bool(value)
        case ast.Tuple(elts) | ast.List(elts) | ast.Set(elts):
            return bool(elts)
        case ast.Lambda() | ast.GeneratorExp() | ast.JoinedStr():
            return True
        case ast.Name(name):
            return name[0].isupper() and not name.isupper()
        case ast.Attribute(value=ast.Name(module)):
            return module in LIBRARIES
        case ast.IfExp(_, body, orelse):  # `a == b if c else d` means `(a == b) if c else d`
            return always_true(body) or always_true(orelse) or isinstance(orelse, ast.Name | ast.Attribute)
        case ast.BoolOp(values=values):  # of an `and`, this part says nothing
            return any(map(always_true, values))
        case ast.Compare(left, _, [right]):
            return same(left, right)
    return False


def same(one: ast.expr, other: ast.expr) -> bool:
    """Return whether two expressions are the same and call nothing, so that they must have the same value."""
    calls = any(isinstance(node, ast.Call | ast.Await) for node in ast.walk(one))
    return not calls and ast.dump(one) == ast.dump(other)


def weak(function: ast.AST) -> Iterator[ast.AST]:
    """Yield the assertions of a function that cannot fail, and those that compare a name with what it was set to."""
    assigned: dict[str, ast.expr] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            assigned[name] = ast.Constant(None) if name in assigned else node.value  # set twice: unknown
    changed = {name.id for node in ast.walk(function) for name in changes(node)}

    def meaning(node: ast.expr) -> ast.expr:
        known = isinstance(node, ast.Name) and node.id in assigned and node.id not in changed
        return assigned[node.id] if known else node

    for node in ast.walk(function):
        if isinstance(node, ast.Assert):
            pairs = [(node.test.left, node.test.comparators[0])] if isinstance(node.test, ast.Compare) else []
            if always_true(node.test):
                yield node
        elif isinstance(node, ast.Call) and "assert_" in ast.unparse(node.func) and len(node.args) >= 2:
            pairs = [(node.args[0], node.args[1])]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and len(node.args) == 1:
            pairs = [(node.func.value, node.args[0])] if node.func.attr in ("equals", "samefile") else []
        else:
            continue
        if any(same(one, other) or same(meaning(one), other) or same(one, meaning(other)) for one, other in pairs):
            yield node


def changes(node: ast.AST) -> Iterator[ast.Name]:
    """Yield the names whose value a statement may change other than by a plain assignment."""
    if isinstance(node, ast.AugAssign | ast.For | ast.comprehension):
        yield from (name for name in ast.walk(node.target) if isinstance(name, ast.Name))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        yield node.func.value  # a method may change its object
    if isinstance(node, ast.Assign):
        targets = [target.value for target in node.targets if isinstance(target, ast.Subscript | ast.Attribute)]
        yield from (target for target in targets if isinstance(target, ast.Name))


@pytest.mark.parametrize(
    "statement",
    [
        "assert leaf.dtype == np.int32 if leaf.ndim == 0 else np.float32",
        "assert (x == 1, 'message')",
        "assert (x == 1 for x in y)",
        "assert kind == 'a' or 'b'",
        "assert x is None or np.float32",
        "assert x.shape == x.shape",
        "assert Loss",
        "y = x[0]; assert y == x[0]",
        "np.testing.assert_array_equal(x.a, x.a)",
    ],
)
def test_weak_assertions_are_found(statement):
    assert list(weak(ast.parse(statement)))


@pytest.mark.parametrize(
    "statement",
    [
        "assert leaf.dtype == (np.int32 if leaf.ndim == 0 else np.float32)",
        "assert f(x) == f(x)",
        "assert x and y == 2",
        "y = x[0]; change(x); y.append(1); assert y == x[0]",
    ],
)
def test_other_assertions_are_left_alone(statement):
    assert not list(weak(ast.parse(statement)))


def test_no_assertion_is_weak():
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for file in sorted(ROOT.rglob("*.py"))
        for function in ast.walk(ast.parse(file.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in weak(function)
    ]
    assert not found, "\n".join(dict.fromkeys(found))
