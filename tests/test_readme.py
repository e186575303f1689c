"""What the README shows is what happens."""

import contextlib
import io
import pathlib
import re

import pytest
import tensorflow as tf
import tf_keras

import tfk_regularizers as tfk

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()


@pytest.mark.parametrize("heading", ["A penalty of your own", "Two penalties on one weight"])
def test_snippet_prints_what_stands_below_it(heading):
    section = README.split(f"### {heading}\n")[1].split("\n### ")[0]
    blocks = re.findall(r"```(\w*)\n(.*?)```", section, re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), tf_keras.utils.custom_object_scope({}):
        exec(blocks[0][1], {"tf": tf, "tf_keras": tf_keras, "tfk": tfk, "__name__": __name__})
    assert printed.getvalue() == "".join(text for language, text in blocks[1:2] if not language)
    tf_keras.saving.get_custom_objects().pop("my_package>Frobenius", None)
