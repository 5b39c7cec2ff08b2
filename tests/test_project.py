# SPDX-License-Identifier: Apache-2.0
"""The house rules for every file: licence lines, sizes, commands in the README, packaging."""

import ast
import functools
import importlib
import io
import os
import pathlib
import re
import tokenize

import pytest

from tests.support import ROOT

SKIPPED = {"runs", "build", "__pycache__"}
MAX_FILE, MAX_FUNCTION, MAX_LINE = 400, 60, 120
TOOLS, MAX_TOOLS_SHARE = ("scripts/", "benchmarks/"), 0.15
LONG_FILES = {"training/networks.py"}  # every snapshot contains its text, so it stays one file


def python_files() -> list[str]:
    """Paths of the project's own Python files, relative to the root."""
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if name not in SKIPPED and not name.startswith(".")]
        found += [pathlib.Path(folder, name).relative_to(ROOT).as_posix() for name in names if name.endswith(".py")]
    return sorted(found)


FILES = python_files()


@functools.cache
def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_tree_is_found():
    assert {"train.py", "training/networks.py", "dnnlib/util.py", "tests/test_project.py"} <= set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_file_keeps_the_house_rules(name):
    lines = read(name).splitlines()
    assert not lines or "# SPDX-License-Identifier: Apache-2.0" in lines[:2]
    assert len(lines) <= MAX_FILE or name in LONG_FILES
    assert [number for number, line in enumerate(lines, 1) if len(line) > MAX_LINE] == []
    faults = []
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not name.startswith("tests/"):
            length = node.end_lineno - node.lineno + 1
            if length > MAX_FUNCTION:
                faults.append(f"line {node.lineno}: {node.name} has {length} lines")
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            if node.type is None or silent:
                faults.append(f"line {node.lineno}: bare or silent except")
    assert faults == []


LAYOUT_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines of `source` with code: neither blank nor only a comment or docstring."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in LAYOUT_TOKENS:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node) is not None:
            lines.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_code_lines_are_neither_blank_nor_comments_nor_docstrings():
    docstring = '"""A module\nof\n\nthree lines."""\n\n'
    text = 'X = """a\n\nb"""  # four\n\n# why\n'
    function = 'def f():\n    "Doc."\n    return (\n        1)\n'
    assert code_lines(docstring + text + function) == 3 + 3


def test_tools_are_a_small_part_of_the_project():
    sizes = {name: code_lines(read(name)) for name in FILES if not name.startswith("tests/")}
    tools = sum(size for name, size in sizes.items() if name.startswith(TOOLS))
    assert 0 < tools < MAX_TOOLS_SHARE * sum(sizes.values())


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", read("Makefile"), re.MULTILINE))


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md", ".ci/run"])
def test_make_commands_of_the_pages_exist(page):
    named = set(re.findall(r"\bmake ([a-z][a-z-]*)\b", " ".join(commands(read(page)))))
    assert named
    assert named <= make_targets()


def commands(page: str) -> list[str]:
    """Code of a page: fenced or indented blocks and code spans; a shell script is code as a whole."""
    if page.startswith("#!"):
        return [page]
    return re.findall(r"```.*?```|`[^`\n]+`|^    .+$", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))])
def test_scripts_and_files_named_on_a_page_exist(page):
    text = read(page)
    scripts = set(re.findall(r"python (\w+\.py)", text))
    assert {name for name in scripts if not (ROOT / name).is_file()} == set()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    folder = (ROOT / page).parent
    assert [link for link in links if not (folder / link).exists()] == []


def test_command_lines_on_the_pages_use_flags_that_exist():
    pages = ["README.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]
    seen = set()
    for page in pages:
        for script, arguments in re.findall(r"python (\w+)\.py((?:[^\n`]*\\\n)*[^\n`]*)", read(page)):
            known = {flag for option in importlib.import_module(script).main.params for flag in option.opts}
            used = set(re.findall(r"(--[a-z][a-z0-9-]*)", arguments)) - {"--help"}
            assert used <= known, f"{page}, {script}.py: {sorted(used - known)}"
            seen.add(script)
    assert {"train", "generate", "dataset_tool"} <= seen


def test_packaging_agrees_with_the_lock_and_the_tree():
    pyproject, lock = read("pyproject.toml"), read("requirements.lock")
    assert 'requires-python = ">=3.10"' in pyproject
    assert re.search(r"^torch==2\.13\.0$", lock, re.MULTILINE)
    loose = [line for line in lock.splitlines() if line and not line.startswith("#") and "==" not in line]
    assert loose == []
    listed = set(re.findall(r'^    "stylegan2_dgl\.project\.([\w.]+)",$', pyproject, re.MULTILINE))
    packages = {name.removesuffix("/__init__.py").replace("/", ".") for name in FILES if name.endswith("/__init__.py")}
    found = {name for name in packages if name.split(".")[0] not in ("tests", "stylegan2_dgl")}
    assert listed == found | {"data"}


def test_direct_dependencies_are_pinned():
    declared = re.search(r"^dependencies = \[(.*?)^\]", read("pyproject.toml"), re.MULTILINE | re.DOTALL)[1]
    names = set(re.findall(r'"([a-z0-9-]+)[<>=]', declared))
    assert {"torch", "numpy"} <= names
    assert names <= set(re.findall(r"^([a-z0-9-]+)==", read("requirements.lock"), re.MULTILINE))


def test_licence_is_the_full_apache_text():
    text = read("LICENSE")
    for line in ("Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS"):
        assert line in text


def test_ci_runs_the_test_command_of_the_readme():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in read(".ci/run")
    assert "make test" in read("README.md")
