"""Which module may use private parts of Keras and TensorFlow, and which may import which."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest
from libraries import KERAS3

import tfk_regularizers as tfk
from tfk_regularizers._keras import hosts

ROOT = pathlib.Path(tfk.__file__).parent
MODULES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in ROOT.rglob("*.py")}
TENSORFLOW_INTERNALS = "_tensorflow_internals.py"


def imports(tree):
    """The full names of all modules and objects that a module imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def private_attributes(tree):
    """Yield each `getattr(x, "_name")`, and each `x._name` unless x is `self`, `cls` or one of our modules."""
    own_modules = {name.rpartition(".")[2] for name in imports(tree) if name.startswith("tfk_regularizers")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            of = node.value.id if isinstance(node.value, ast.Name) else None
            is_private = node.attr.startswith("_") and not node.attr.endswith("__")
            if is_private and of not in {"self", "cls", *own_modules}:
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1].value if isinstance(node.args[1], ast.Constant) else ""
            if name.startswith("_") and not name.endswith("__"):
                yield ast.unparse(node)


@pytest.mark.parametrize("module", MODULES)
def test_private_parts_are_used_in_one_place(module):
    tree = MODULES[module]
    names = list(imports(tree))
    if module != TENSORFLOW_INTERNALS:
        assert [name for name in names if name.startswith("tensorflow.python")] == []
        assert "tf.__internal__" not in ast.unparse(tree)
    if not module.startswith("_keras/"):
        assert [name for name in names if name.startswith(("tf_keras.src", "keras.src"))] == []
    if module != TENSORFLOW_INTERNALS and not module.startswith("_keras/"):
        assert list(private_attributes(tree)) == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.startswith("_penalties/")])
def test_penalties_import_nothing_of_models(module):
    allowed = ("_penalties", "_messages", "_tensorflow_internals", "_keras.versions", "_keras.variables")
    own = [name.partition(".")[2] for name in imports(MODULES[module]) if name.startswith("tfk_regularizers")]
    assert [name for name in own if not name.startswith(allowed)] == []


def test_no_module_walks_frames_or_changes_classes():
    forbidden = {"_getframe", "_current_frames", "get_objects", "get_referrers", "__bases__", "settrace", "meta_path"}
    for module, tree in MODULES.items():
        assert forbidden.isdisjoint(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)), module
        targets = [target for node in ast.walk(tree) if isinstance(node, ast.Assign) for target in node.targets]
        assert not [target for target in targets if ast.unparse(target).endswith(".__class__")], module


def test_both_hosts_have_the_functions_of_the_protocol():
    methods = {name: value for name, value in vars(hosts.Host).items() if not name.startswith("_")}
    for host in (hosts.keras2, *([importlib.import_module(f"{hosts.__package__}.keras3")] if KERAS3 else [])):
        assert sorted(name for name, value in vars(host).items() if inspect.isfunction(value)) == sorted(methods)
        for name, method in methods.items():
            first, *expected = inspect.signature(method).parameters
            assert first == "self"
            assert list(inspect.signature(getattr(host, name)).parameters) == expected, name


def test_hosts_are_chosen_in_one_place():
    """Only registration and `hosts` import a specific host; hosts import neither each other nor higher layers."""
    for module, tree in MODULES.items():
        own = [name.partition(".")[2] for name in imports(tree) if name.startswith("tfk_regularizers")]
        if not module.startswith(("_keras/keras2/", "_keras/keras3/", "_keras/hosts.py", "_registration.py")):
            assert [name for name in own if re.match(r"_keras\.keras[23]\b(?!\.registry)", name)] == [], module
        for host, other in (("keras2", "keras3"), ("keras3", "keras2")):
            if module.startswith(f"_keras/{host}/"):
                above = (
                    "_models",
                    "_scheduler",
                    "_log_penalties",
                    "_keras.hosts",
                    "_keras.regularization",
                    "_keras.targets",
                )
                assert [name for name in own if name.startswith((f"_keras.{other}", *above))] == [], module
