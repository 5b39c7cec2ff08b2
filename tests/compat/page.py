# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/compatibility.md, generated from data. `python -m tests.compat.page` writes them to the page."""

import importlib
import re

from tests.compat import stand_in_tree
from tests.compat.surface import FLAGS, NAMES, TESTS
from tests.support import ROOT

PAGE = ROOT / "docs" / "compatibility.md"
SCRIPTS = [*FLAGS, "export"]


def flags_of(script: str) -> list[str]:
    """Flags of a root script, in order, with one name each."""
    return [option.opts[-1] for option in importlib.import_module(script).main.params]


def names_in_test(module: str, test: str) -> list[str]:
    """Names of `module` that the test file uses, by `surface.TESTS`."""
    return list(NAMES[module]) if TESTS[module][test] == "*" else TESTS[module][test].split()


def _code(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def flags_table() -> str:
    """Flags of each script: those of StyleGAN2-ADA, and the new ones."""
    rows = []
    for script in SCRIPTS:
        known = [f"--{name}" for name in FLAGS.get(script, "").split()]
        new = [flag for flag in flags_of(script) if flag not in known]
        rows.append([f"`{script}.py`", *(f"`{' '.join(flags)}`" if flags else "" for flags in (known, new))])
    return _table(["script", "flags of StyleGAN2-ADA", "new"], rows)


def stored_names_table() -> str:
    """Names that the source text in a snapshot may use."""
    rows = [[f"`{module}`", _code(sorted(names))] for module, names in stand_in_tree.ALLOWED.items()]
    return _table(["module", "names that the stored text may use"], rows)


def names_table() -> str:
    """Importable names and the tests that use them; names with the same tests share a row."""
    rows = []
    for module, names in NAMES.items():
        by_tests: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            tests = tuple(test for test in TESTS[module] if name in names_in_test(module, test))
            by_tests.setdefault(tests, []).append(name)
        for tests, listed in by_tests.items():
            links = ", ".join(f"[{test.rsplit('/', 1)[-1]}](../tests/{test})" for test in tests)
            rows.append([f"`{module}`", _code(listed), links])
    return _table(["module", "names", "test"], rows)


TABLES = {"flags": flags_table, "stored names": stored_names_table, "importable names": names_table}


def with_tables(text: str) -> str:
    """`text` with the current tables between their markers."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", "<!-- end of table -->"
        pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"the page must have one {start} ... {end}")
        block = f"{start}\n{table()}\n{end}"
        text = pattern.sub(lambda _match, block=block: block, text)
    return text


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
