"""Every fault of the catalogue has a test that injects it; the marks say which."""

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
CATALOGUE = {f"F{number:02}" for number in range(1, 76)}


def injected() -> Iterator[str]:
    """The ids that are marked anywhere, and those of the table of signals."""
    for file in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                for argument in node.args:
                    if isinstance(argument, ast.Constant):
                        yield str(argument.value)
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MARKS":
                yield from ast.literal_eval(node.value).values()


def test_every_fault_of_the_catalogue_is_injected() -> None:
    found = set(injected())
    assert found <= CATALOGUE, "an unknown fault"
    assert found == CATALOGUE
