"""Build the reference from the docstrings, as web pages in `.reference/`. A warning is an error."""

import pathlib
import warnings

import pdoc

import tfk_regularizers  # here, because pdoc blocks the subprocess that an import of TensorFlow starts

ROOT = pathlib.Path(__file__).resolve().parents[1]

pdoc.render.configure(docformat="google", math=True, show_source=False, footer_text=tfk_regularizers.__version__)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    pdoc.pdoc("tfk_regularizers", output_directory=ROOT / ".reference")
print(ROOT / ".reference/index.html")
