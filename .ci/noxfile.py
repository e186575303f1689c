"""Test the built wheel with several versions of TensorFlow and Python, outside of the source tree.

    nox -f .ci/noxfile.py                              run the whole suite with each version, and test other packages
    nox -f .ci/noxfile.py -s oldest                    run the tests that an old TensorFlow could break, on this Python
    nox -f .ci/noxfile.py -s packages                  test the models of other packages
    nox -f .ci/noxfile.py -- tests/test_saving.py -x   pass these arguments to pytest instead

Each session creates its own environment. If its Python is not found, the session is skipped.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import nox

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
NEWEST = ""  # the newest version that pip finds
NEXT = "2.22.0rc0"  # a pre-release, tested with the previous tf-keras, whose metadata does not allow it yet

# Each TensorFlow runs on a Python that it supports, and each Python is used. (On Python 3.12, tf-keras up to 2.18 fails
# after a seed is set: it draws a random integer with a float as the limit.)
MATRIX = [
    nox.param("3.10", "2.16", {}, id="TensorFlow 2.16, Python 3.10"),
    nox.param("3.11", "2.18", {}, id="TensorFlow 2.18, Python 3.11"),
    nox.param("3.12", "2.20", {}, id="TensorFlow 2.20, Python 3.12"),
    nox.param("3.12", "2.21", {}, id="TensorFlow 2.21, Python 3.12"),
    nox.param("3.11", NEXT, {}, id=f"TensorFlow {NEXT}, Python 3.11"),
    nox.param("3.13", NEWEST, {}, id="newest TensorFlow, Python 3.13"),
    nox.param("3.13", NEWEST, {"TF_USE_LEGACY_KERAS": "1"}, id="newest TensorFlow, Python 3.13, legacy Keras"),
]
# Packages whose models people regularize, in versions that work with the same TensorFlow. The Model Garden is installed
# without its dependencies; those that its layers import are listed here.
PACKAGES = [
    "tensorflow-model-optimization==0.8.*",
    "tensorflow-probability==0.25.*",
    "tensorflow-recommenders==0.7.*",
    "tensorflow-gnn==1.0.*",
    "spektral==1.3.*",
    *("gin-config", "matplotlib", "opencv-python-headless", "pycocotools", "sentencepiece"),
    *("tensorflow-datasets", "tensorflow-hub", "tensorflow-text==2.20.*", "tf_slim"),
]
GARDEN = "tf-models-official==2.20.*"
QUICK = [
    f"tests/test_{name}.py"
    for name in ("registration", "saving", "identifiers", "penalties", "orthogonality", "readme")
]

nox.options.sessions = ["matrix", "packages"]
nox.options.envdir = ROOT / ".nox"
nox.options.download_python = "never"
nox.options.error_on_missing_interpreters = False

if "PYENV_VERSION" not in os.environ and shutil.which("pyenv"):  # also find its inactive Pythons
    active, installed = (
        re.findall(r"[^:\s]+", subprocess.run(["pyenv", *command], capture_output=True, text=True, check=False).stdout)
        for command in (["version-name"], ["versions", "--bare"])
    )
    others = [name for name in installed if re.fullmatch(r"\d\.\d+\.\d+", name) and name.rpartition(".")[0] in PYTHONS]
    os.environ["PYENV_VERSION"] = ":".join(dict.fromkeys([*active, *others]))


@nox.session
@nox.parametrize("python, tensorflow, environment", MATRIX)
def matrix(session, tensorflow, environment):
    """Run the whole suite with one version of TensorFlow."""
    run_tests(session, tensorflow, environment, ["tests", "--pyargs", "tfk_regularizers"])


@nox.session
def oldest(session):
    """Test registration, saving, values and gradients with the oldest TensorFlow for this Python."""
    run_tests(session, "2.16" if sys.version_info < (3, 13) else "2.20", {}, QUICK)


@nox.session(python="3.11")
def packages(session):
    """Run small tests of the models of other packages."""
    session.install("tensorflow==2.20.*", "tf-keras==2.20.*", *PACKAGES)
    session.install("--no-deps", GARDEN)
    run_tests(session, "2.20", {"TF_USE_LEGACY_KERAS": "1"}, ["-p", "no:warnings", "tests/packages"])


def run_tests(session, tensorflow, environment, selection):
    """Build the wheel, install it with its `test` extra, and run a copy of the tests in a temporary folder."""
    is_release = tensorflow != NEXT
    pins = [f"{name}=={tensorflow}.*" for name in ("tensorflow", "tf-keras")] if tensorflow and is_release else []
    with tempfile.TemporaryDirectory() as folder:
        session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, str(ROOT))
        (wheel,) = pathlib.Path(folder).glob("*.whl")
        session.install(f"{wheel}[test]", *pins)
        if not is_release:
            # The pre-release needs keras-nightly, which installs into the folder of keras.
            session.run("pip", "uninstall", "--quiet", "--yes", "keras")
            session.install(f"tensorflow=={tensorflow}")
        for name in ("tests", "examples", ".github"):  # the README links to them
            shutil.copytree(ROOT / name, f"{folder}/{name}", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
        session.chdir(folder)
        environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": "", **environment}
        session.run("python", "-c", VERSIONS, env=environment)
        session.run("pytest", "-q", "-c", "pyproject.toml", "-m", "", *(session.posargs or selection), env=environment)


VERSIONS = """
import platform, tensorflow, tf_keras, tfk_regularizers as tfk
assert "site-packages" in tfk.__file__, tfk.__file__
print("Python", platform.python_version(), "TensorFlow", tensorflow.__version__, "tf-keras", tf_keras.__version__)
"""
