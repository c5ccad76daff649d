"""The outputs in docs/cli.md are what the commands print. `--update-golden` writes them anew."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.unit.cli.example import logs, use_example

from dbranch_cli.main import cli

PAGE = Path(__file__).parents[3] / "docs" / "cli.md"


def read_blocks(text: str) -> list[str]:
    """Return the fenced blocks without a language: `$ dbranch …`, and what it prints."""
    blocks: list[list[str]] = []
    fence = None
    for line in text.splitlines(keepends=True):
        if line.startswith("```"):
            if fence is None and line == "```\n":
                blocks.append([])
            fence = line if fence is None else None
        elif fence == "```\n":
            blocks[-1].append(line)
    return ["".join(lines) for lines in blocks]


BLOCKS = read_blocks(PAGE.read_text(encoding="utf-8"))


def command_of(block: str) -> str:
    first = block.partition("\n")[0]
    assert first.startswith("$ dbranch "), f"{first!r} is no command: such a block has a language, as ```sh"
    return first


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: command_of(block).removeprefix("$ "))
def test_an_output_in_the_page_is_what_the_command_prints(
    block: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    command = command_of(block)
    use_example(monkeypatch, tmp_path, logs("2030-01-13T11:59:00Z started\n"))
    words = shlex.split(command.removeprefix("$ dbranch "))
    result = CliRunner().invoke(cli, words, prog_name="dbranch", catch_exceptions=False)
    output = result.output.replace(str(tmp_path), "/home/ann/.config/dbranch")
    printed = f"{command}\n{output}"
    if request.config.getoption("--update-golden"):
        PAGE.write_text(
            PAGE.read_text(encoding="utf-8").replace(f"```\n{block}```", f"```\n{printed}```"),
            encoding="utf-8",
        )
    else:
        assert block == printed, (
            "docs/cli.md is of before: pytest tests/unit/cli/test_cli_page.py --update-golden"
        )


def test_the_page_has_the_outputs_of_the_commands_that_show_something() -> None:
    shown = {command_of(block).split()[2] for block in BLOCKS}
    assert {"list", "status", "tree", "doctor", "current", "project", "orphan", "report"} <= shown
