"""`dbranch dump`: which pg_dump writes it, and what an interrupted one leaves."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from dbranch.api.errors import InvalidInput
from dbranch_cli import dump
from dbranch_cli.dump_format import DumpFormat, dump_format_of
from dbranch_cli.dump_writer import DumpWriter
from dbranch_cli.failure import Failure
from dbranch_cli.invocation import Invocation


def install(directory: Path, major: int) -> str:
    directory.mkdir(parents=True)
    program = directory / "pg_dump"
    program.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {major}.4 (Debian {major}.4-1)'\n")
    program.chmod(0o755)
    return str(program)


def test_a_pg_dump_of_the_branchs_own_major_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = install(tmp_path / "path", 18)
    monkeypatch.setenv("PATH", f"{tmp_path}/path:/usr/bin:/bin")
    monkeypatch.setattr(dump, "_DEBIAN", str(tmp_path / "debian"))
    own = install(tmp_path / "debian" / "17" / "bin", 17)
    for version, program in (("17.6", own), ("18.1", newer), ("16.2", newer)):
        assert dump.find_program({"status": {"node": {"postgresVersion": version}}}) == program
    assert dump.find_program({}) == newer
    with pytest.raises(Failure, match=r"of Postgres 18, older than the branch's 19.*postgresql-client-19"):
        dump.find_program({"status": {"node": {"postgresVersion": "19.0"}}})


@pytest.mark.parametrize(
    ("file", "chosen", "expected"),
    [
        ("shop.sql", None, "plain"),
        ("shop.SQL.GZ", None, "plain, gzip"),
        ("shop.2030.zst", None, "plain, zstd"),
        ("shop.dump", None, "custom"),
        ("shop-2030.01.01", None, "custom"),
        ("shop.tar.zst", None, "tar, zstd"),
        ("shop/", None, "directory"),
        ("-", None, "plain"),
        ("-", "custom", "custom"),
        ("shop.sql", "tar", "tar"),
    ],
)
def test_the_form_of_a_file(file: str, chosen: str | None, expected: str) -> None:
    assert str(dump_format_of(file, chosen)) == expected


def test_a_directory_is_neither_packed_nor_a_stream() -> None:
    for file in ("-", "shop.gz"):
        with pytest.raises(InvalidInput, match="name a directory"):
            dump_format_of(file, "directory")


@pytest.mark.parametrize(
    "expected", [DumpFormat("plain"), DumpFormat("plain", "gzip"), DumpFormat("directory")]
)
def test_an_interrupted_dump_leaves_nothing(tmp_path: Path, expected: DumpFormat) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        DumpWriter(Invocation(), str(tmp_path / "shop"), expected) as writer,
    ):
        if isinstance(writer.stdout, io.BufferedWriter):
            writer.stdout.write(b"half")
        assert [*tmp_path.iterdir()]
        raise KeyboardInterrupt
    assert not [*tmp_path.iterdir()]
