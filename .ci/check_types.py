"""Type-check code as users write it, `typed.py` and the snippets of the README, with `mypy --strict` and pyright."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
MYPY = "[mypy]\nstrict = true\nignore_missing_imports = true\n"  # tf_keras has no types
PYRIGHT = {"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}
# pyright infers the types of Keras from its defaults, and would reject `fit(verbose=0)` in the README.
ANYTHING = {f"typings/{name}/__init__.pyi": "def __getattr__(name: str): ...\n" for name in ("keras", "tf_keras")}
REVEALED = re.compile(r":(\d+).*(?:Revealed type is|Type of .* is) \"(.*)\"$", re.M)


def main():
    typed, readme = (ROOT / ".ci/typed.py").read_text(), (ROOT / "README.md").read_text()
    snippets = "\n".join(re.findall(r"```python\n(.*?)```", readme, re.S))
    snippets = snippets.replace("tf.Variable(0.5", "tf.Variable(tf.constant(0.5)")  # the stubs do not know numbers here
    passed = [
        check(checker, files)
        for files in ({"typed.py": typed}, {"readme.py": snippets, **ANYTHING})
        for checker in (["mypy"], ["pyright", "--pythonpath", sys.executable])
    ]
    sys.exit(not all(passed))


def check(checker, files):
    """Return whether a checker accepts the first file and reveals the types in its comments; print the result."""
    (name, text), *_ = files.items()
    expected = dict(re.findall(r"^reveal_type\((.*)\)  # (.*)$", text, re.M))
    with tempfile.TemporaryDirectory() as folder:
        for path, content in {**files, "mypy.ini": MYPY, "pyrightconfig.json": json.dumps(PYRIGHT)}.items():
            file = pathlib.Path(folder, path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
        done = subprocess.run(
            [sys.executable, "-m", *checker, name], cwd=folder, capture_output=True, text=True, check=False
        )
    lines = text.splitlines()
    # Remove the module names from the types: each checker writes them differently.
    revealed = {
        lines[int(line) - 1].removeprefix("reveal_type(").split(")  # ")[0]: re.sub(r"\b\w+\.", "", type_)
        for line, type_ in REVEALED.findall(done.stdout)
    }
    if done.returncode or revealed != expected:
        print(done.stdout, done.stderr)
    for what, type_ in expected.items():
        mark = "" if revealed.get(what) == type_ else f", but expected {type_}"
        print(f"{checker[0]}: {what} is {revealed.get(what)}{mark}")
    print(f"{checker[0]} {'accepts' if not done.returncode else 'REJECTS'} {name}")
    return done.returncode == 0 and revealed == expected


if __name__ == "__main__":
    main()
