"""Shared fixtures. tf_keras is imported first, to keep its own regularizers before the package replaces them."""

import gc
import os
import pathlib
import subprocess
import sys
import types

import pytest
import tensorflow as tf
import tf_keras
from tensorflow.python.util import tf_export

BUILTIN = types.SimpleNamespace(
    **{
        name: getattr(tf_keras.regularizers, name)
        for name in ("L1", "L2", "L1L2", "OrthogonalRegularizer", "l1_l2", "get", "serialize", "deserialize")
    }
)

import tfk_regularizers as tfk  # noqa: E402

_iterate = tf.data.Dataset.__iter__


def without_autotuning(dataset):
    """Disable autotuning: deleting an iterator waits up to a minute for its tuning thread."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return _iterate(dataset.with_options(options))


tf.data.Dataset.__iter__ = without_autotuning

PARENT = str(pathlib.Path(tfk.__file__).parents[1])


def pytest_xdist_auto_num_workers(config):
    """Use no workers for a few tests chosen by name, or without capturing: each worker imports everything again."""
    few = config.option.keyword or any("::" in argument for argument in config.args)
    return 0 if few or config.option.capture == "no" or config.option.collectonly else None


def pytest_itemcollected(item):
    """Mark a case of a test with `light` marks as heavy, unless its parameters match at least one of these marks."""
    choices = [mark.kwargs.items() for mark in item.iter_markers("light")]
    if choices and not any(all(item.callspec.params[name] in values for name, values in each) for each in choices):
        item.add_marker("heavy")


def pytest_collection_finish():
    """Exclude imported objects from garbage collection: scanning a million of them took a third of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def builtin():
    """The regularizers of tf_keras itself, as they were before the package was imported."""
    return BUILTIN


@pytest.fixture
def restored():
    """Undo what the test does to the registration, the canonical names and the custom objects of tf_keras."""
    registry = sys.modules[tf_keras.saving.get_registered_name.__module__]
    tables = (registry._GLOBAL_CUSTOM_OBJECTS, registry._GLOBAL_CUSTOM_NAMES, tf_export._NAME_TO_SYMBOL_MAPPING)
    before = [dict(table) for table in tables]
    yield
    tfk.unregister()
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    tfk.register()


@pytest.fixture(scope="session")
def run_python():
    """A function that runs a Python program in a new process, which can import the package, and returns its stdout."""

    def run(*arguments, **environment):
        env = {key: value for key, value in os.environ.items() if key != "TF_USE_LEGACY_KERAS"}
        path = os.pathsep.join([PARENT, *filter(None, [env.get("PYTHONPATH")])])
        env.update(environment, PYTHONPATH=path)
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
