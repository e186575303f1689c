"""Type-check what users write, `typed.py` and the snippets of the README, by `mypy --strict` and by pyright."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
MYPY = "[mypy]\nstrict = true\nignore_missing_imports = true\n"  # tf_keras has no types
PYRIGHT = {"typeCheckingMode": "standard", "reportUnnecessaryTypeIgnoreComment": "error"}
REVEALED = re.compile(r":(\d+).*(?:Revealed type is|Type of .* is) \"(.*)\"$", re.M)


def main():
    typed = (ROOT / ".ci/typed.py").read_text()
    expected = {
        number: line.split("  # ")[1]
        for number, line in enumerate(typed.splitlines(), 1)
        if line.startswith("reveal_type(")
    }
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "typed.py": typed,
            "readme.py": "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)),
            "mypy.ini": MYPY,
            "pyrightconfig.json": json.dumps(PYRIGHT),
        }
        for name, text in files.items():
            pathlib.Path(folder, name).write_text(text)
        for checker, *options in (["mypy"], ["pyright", "--pythonpath", sys.executable]):
            command = [sys.executable, "-m", checker, *options, "typed.py", "readme.py"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            # Without the modules that a type comes from, which the checkers name in their own ways.
            revealed = {int(line): re.sub(r"\b\w+\.", "", type_) for line, type_ in REVEALED.findall(done.stdout)}
            wrong = {line: (revealed.get(line), name) for line, name in expected.items() if revealed.get(line) != name}
            if done.returncode or wrong:
                failures.append(checker)
                print(done.stdout, done.stderr)
            for line, (found, name) in wrong.items():
                print(f"{checker}: typed.py:{line}: revealed {found}, expected {name}")
            print(f"{checker}: {len(expected) - len(wrong)} of {len(expected)} types as expected")
    sys.exit(f"failed: {', '.join(failures)}" if failures else 0)


if __name__ == "__main__":
    main()
