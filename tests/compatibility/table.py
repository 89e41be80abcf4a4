"""Makes `docs/compatibility.md` of what the programs prove.

    python -m tests.compatibility.table > docs/compatibility.md

A row says *same* because programs that mention the name agree under both clusters, or *differs*, or *not supported*,
because a program is registered so. The programs are run by `test_programs`, where a mark that is not true fails.
"""

from __future__ import annotations

from collections import Counter

from tests.compatibility import surface
from tests.compatibility.programs import Program, load

#: How many programs a row names.
NAMED_MAX = 3

HEAD = """\
# Compatibility with `LocalCluster`

What a program may expect when `ServerlessCluster()` stands where `LocalCluster()` stood. This page is made of the
tests in [tests/compatibility](../tests/compatibility/README.md), by `python -m tests.compatibility.table`:
{programs} programs run under both clusters, and their results, exceptions, messages and warnings are compared. Dask's
collections (arrays, dataframes, bags, delayed, dask-ml) are in the programs; the tables are about `distributed`.

- **same**: programs that use it do the same under both. How many do is given, with some of them.
- **differs**: programs show a difference, and the reason is given. What is not mentioned there is the same.
- **not supported**: it raises the error that is given.
- **beside**: Dask's own, which this package neither changes nor meets.

A part can differ while the rest of it is the same; then both are given. {summary}
"""


def verdict(name: str, programs: list[Program]) -> tuple[str, str]:
    """Return what a row says of a name: its state, and the reasons or the programs that show it."""
    agreeing = [each for each in programs if not each.differs and not each.unsupported]
    unsupported = dict.fromkeys(each.unsupported for each in programs if each.unsupported)
    differences = dict.fromkeys(each.differs for each in programs if each.differs)
    if unsupported:
        return "not supported", "; ".join(map(str, unsupported))
    if differences:
        text = "; ".join(map(str, differences))
        return "differs", f"{text} (otherwise the same: {_shown(agreeing)})" if agreeing else text
    if agreeing:
        return "same", _shown(agreeing)
    return "beside", surface.BESIDE[name]


def _shown(programs: list[Program]) -> str:
    # Those that are about few names are most about this one.
    closest = sorted(programs, key=lambda program: (len(surface.covered(program)), program.name))[:NAMED_MAX]
    count = f"{len(programs)} programs" if len(programs) > 1 else "1 program"
    return f"{count}: " + ", ".join(f"`{each.name}`" for each in closest)


def rows() -> list[tuple[str, str, str]]:
    """Return all rows: name, state, and why."""
    about: dict[str, list[Program]] = {name: [] for name in surface.names()}
    for program in load():
        for name in surface.covered(program):
            about[name].append(program)
    return [(name, *verdict(name, programs)) for name, programs in about.items()]


def render() -> str:
    """Return the page."""
    found = rows()
    counts = Counter(state for _, state, _ in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in ("same", "differs", "not supported", "beside"))
    lines = [HEAD.format(programs=len(load()), summary=f"Of {len(found)} names: {summary}.")]
    groups: dict[str, list[tuple[str, str, str]]] = {}
    for row in found:
        kind = row[0].partition(".")[0]
        groups.setdefault(kind if kind in surface.CLASSES else "", []).append(row)
    for kind in (*surface.CLASSES, ""):
        title = f"`{kind}`" if kind else "Functions and other classes"
        lines += [f"## {title}\n", "| | | |", "|---|---|---|"]
        lines += [f"| `{name}` | {state} | {_cell(why)} |" for name, state, why in groups[kind]]
        lines.append("")
    return "\n".join(lines).rstrip("\n") + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    print(render(), end="")
