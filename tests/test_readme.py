"""The snippets in the README print the outputs shown there, and links in the documentation work."""

import json
import pathlib
import re

import pytest
from libraries import needs_host

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = (
    "README.md",
    "examples/README.md",
    "examples/benchmark.md",
    "examples/orthogonality.md",
    "tests/README.md",
    ".github/CONTRIBUTING.md",
)
# Each snippet, with the output directly below it.
SNIPPETS = re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```\n)?", README, re.S)

RUN = """
import contextlib, io, json, sys

outputs, names = [], {"__name__": "__main__"}
for snippet in json.load(open(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(snippet, names)
    outputs.append(output.getvalue())
print(json.dumps(outputs))
"""


@pytest.fixture(scope="module", params=["tf_keras", pytest.param("keras", marks=needs_host)])
def outputs(request, run_python, tmp_path_factory):
    """The output of each snippet. They run in order, in one process that has not imported the package."""
    file = tmp_path_factory.mktemp("readme") / "snippets.json"
    snippets = [re.sub(r"(?m)^import keras .*", f"import {request.param} as keras", snippet) for snippet, _ in SNIPPETS]
    file.write_text(json.dumps(snippets))
    return json.loads(run_python("-W", "error::UserWarning", "-c", RUN, file).splitlines()[-1])


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
@pytest.mark.heavy
def test_snippet_prints_what_stands_below_it(outputs, number):
    assert outputs[number] == SNIPPETS[number][1]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_all_snippets_are_found():
    assert len(SNIPPETS) == README.count("```python")
    assert sum(bool(output) for _, output in SNIPPETS) == README.count("\n```\n\n```\n")
