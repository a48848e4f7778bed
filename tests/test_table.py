"The table of guarantees names tests that exist, and all tests of the battery."

import ast

import tiny
import yaml

PROMISES = yaml.safe_load((tiny.ROOT / "tests/battery.yaml").read_text())
BATTERY = ["battery", "trust", "resume", "lock", "golden"]


def names_in(name: str) -> set[str]:
    "The tests of one file."
    body = ast.parse((tiny.ROOT / f"tests/test_{name}.py").read_text()).body
    return {f"test_{name}.py::{it.name}" for it in body if isinstance(it, ast.FunctionDef) and it.name[:5] == "test_"}


def test_every_guarantee_has_tests():
    "R1 to R18, and each named test exists."
    assert set(PROMISES) >= {f"R{number}" for number in range(1, 19)}
    named = {test for promise in PROMISES.values() for test in promise["tests"]}
    files = {test.partition("::")[0][5:-3] for test in named}
    assert named - set.union(*map(names_in, files)) == set()
    assert all(promise.keys() == {"promise", "measured", "figure", "tests"} for promise in PROMISES.values())


def test_no_test_of_the_battery_is_forgotten():
    "Each test of the battery belongs to a guarantee."
    named = {test for promise in PROMISES.values() for test in promise["tests"]}
    assert set.union(*map(names_in, BATTERY)) - named - OTHERS == set()


OTHERS = {  # Checks of a run's identity, not of the battery
    "test_resume.py::test_changed_parameters_are_refused",
    "test_resume.py::test_changed_text_is_refused",
}
