"""Each recipe of docs/recipes.md runs as it is written, and prints what the page says."""

import asyncio
import re
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.server.harness import Served, serving

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
ADDRESS = "http://127.0.0.1:9911"


class Recipe(NamedTuple):
    """A section of the page: what is run, one after the other, and what each prints."""

    name: str
    programs: list[tuple[str, str]]


def recipes() -> list[Recipe]:
    sections = re.split(r"^## (.*)$", PAGE, flags=re.MULTILINE)[1:]
    return [Recipe(name, _programs(text)) for name, text in zip(*[iter(sections)] * 2, strict=True)]


def _programs(text: str) -> list[tuple[str, str]]:
    """Each program, with the output that follows it."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    kinds = [kind for kind, _ in blocks]
    assert kinds == ["python", "text"] * (len(kinds) // 2), "each program has its output below it"
    contents = [content for _, content in blocks]
    return list(pairwise(contents))[::2]


async def run(program: str, served: Served) -> None:
    assert program.count(ADDRESS) == 1
    code = program.replace(ADDRESS, str(served.http.base_url).rstrip("/"))
    await asyncio.to_thread(exec, code, {"__name__": "recipe"})


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
async def test_recipe_prints_what_the_page_says(
    recipe: Recipe,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert recipe.programs
    async with serving() as served:
        for program, output in recipe.programs:
            await run(program, served)
            assert capsys.readouterr().out == output


def test_page_has_a_recipe_for_each_link_at_its_top() -> None:
    linked = re.findall(r"\[([^]]+)\]\(#([^)]+)\)", PAGE.partition("## ")[0])
    assert [name for name, _ in linked] == [recipe.name for recipe in recipes()]
    for name, anchor in linked:
        assert anchor == name.lower().replace(" ", "-").replace(",", "")
