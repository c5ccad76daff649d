"""A dump as an SQL script on its way to psql: what would break "all or nothing" is found before psql reads it. Pure.

The script is read as psql reads it (src/fe_utils/psqlscan.l): quotes, dollar quotes, comments, parentheses, the
bodies of SQL routines, the data of COPY, commands with a backslash. Encodings whose characters may hold ASCII bytes
(SJIS, BIG5, GBK) are not supported; pg_dump writes them only if it is asked to.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from dbranch_cli.dump_roles import NAMING
from dbranch_cli.dump_stream import DamagedDump

# Of a statement so much is kept: COPY with all its columns, or the words that another begins with.
_MAX_HEAD_BYTES: Final = 1 << 16
_HEAD_BYTES: Final = 256

# What begins or ends something, outside of quotes and comments. `e` before a quote: backslashes escape in it.
_TOKEN: Final = re.compile(
    rb"--|/\*|(?<![\w$\x80-\xff])[eE]'|'|\"|(?<![\w$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$|[;()\\]"
)
_ROUTINE_TOKEN: Final = re.compile(
    _TOKEN.pattern + rb"|(?<![\w$\x80-\xff])(?i:begin|case|end)(?![\w$\x80-\xff])"
)
# For lines of INSERTs, which are most of such a dump: literals, what is left if a line has more than them, and the
# literals that a backslash does not end.
_LITERAL: Final = re.compile(rb"'[^']*'|\"[^\"]*\"")
_NO_LITERAL: Final = re.compile(rb"['\"$\\]|--|/\*")
_ESCAPE_LITERAL: Final = re.compile(rb"[eE]'")
_COMMENT: Final = re.compile(rb"/\*|\*/")
_QUOTE: Final = re.compile(rb"'")
_ESCAPED_QUOTE: Final = re.compile(rb"\\.|'", re.DOTALL)
_DOUBLE_QUOTE: Final = re.compile(rb'"')

_ROUTINE: Final = re.compile(rb"(?i)create\s+(?:or\s+replace\s+)?(?:function|procedure)\b")
_COPY: Final = re.compile(rb"(?is)copy\b.*\bfrom\s+stdin\b")
_META_COPY: Final = re.compile(rb"(?i)\\copy\b.*\bfrom\s+stdin\b")
_ESCAPING: Final = re.compile(
    rb"(?i)set\s+(?:session\s+)?standard_conforming_strings\s*(?:=|to)\s*'?(on|off)'?\s*$"
)
# Those that a script in one transaction does without, and those that would undo a part of it.
_BLOCK: Final = re.compile(rb"(?i)(?:begin|start\s+transaction|commit|end)\b(?!\s+prepared\b)")
_UNDOING: Final = re.compile(
    rb"(?i)(?:rollback|abort)\b(?!\s*(?:work\s+|transaction\s+)?to\b)(?!\s+prepared\b)|prepare\s+transaction\b"
)
_CREATE_PUBLIC: Final = re.compile(rb"(?i)create\s+schema(\s+public)$")
_NO_PARENTHESES: Final = bytes(sorted(set(range(256)) - {*b"()"}))
_COPY_END: Final = re.compile(rb"^\\\.\r?(?:\n|\Z)", re.MULTILINE)
_HEADER: Final = re.compile(rb"^-- PostgreSQL database (cluster )?dump\r?$", re.MULTILINE)
_HEADER_BYTES: Final = 4096


class UnsafeScript(DamagedDump):
    """A command of the script would end the one transaction that it is loaded in, or leave the database."""


class Script:
    """Reads a script line by line, and raises before a line is passed on that must not be.

    `atomic`: it is loaded in one transaction. `rewrite`: what is passed on in place of a statement that names roles,
    extensions or databases (dump_roles.NAMING; without its semicolon), empty for nothing. `left_out`: commands of the
    script that begin or end a transaction, and are not passed on.
    """

    def __init__(self, atomic: bool, rewrite: Callable[[bytes], bytes] | None = None) -> None:
        self._atomic, self._rewrite, self.left_out = atomic, rewrite, 0
        self._line = 0
        # The end of the quote that is open; None: nothing is.
        self._until: re.Pattern[bytes] | None = None
        self._comment_depth = self._parentheses = self._routine_depth = 0
        self._in_copy = self._copy_follows = self._escapes = self._is_routine = False
        # The beginning of the statement, and where in the line it stands (None: in a line before).
        self._beginning = b""
        self._start: int | None = None
        self._edits: list[tuple[int, int, bytes]] = []
        # The lines so far of a statement that is rewritten as a whole.
        self._held = b""
        self._complete = False

    def pass_on(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the script in chunks. Raises UnsafeScript, and DamagedDump at an end that is none."""
        begin, partial = b"", b""
        for chunk in chunks:
            begin += chunk[: max(0, _HEADER_BYTES - len(begin))]
            whole, newline, partial = (partial + chunk).rpartition(b"\n")
            if newline:
                yield self._read(whole + newline, begin)
        if partial:
            yield self._read(partial, begin)
        if self._held or (self._beginning.strip() and self._until is None and not self._comment_depth):
            # psql executes a last statement without a semicolon, too.
            self._line -= 1
            end = self._read(b"\n;" if self._held else b";", begin)
            yield b"" if end == b";" else end + self._release()
        self._check_end(begin)

    def read_beginning(self, data: bytes) -> None:
        """Judge the whole lines of a script's beginning, which may end within a statement. Raises UnsafeScript."""
        self._read(data[: data.rfind(b"\n") + 1], data[:_HEADER_BYTES])

    def _check_end(self, begin: bytes) -> None:
        if self._in_copy:
            raise DamagedDump(f"it is cut off: line {self._line} is in the data of a COPY, which has no end")
        if self._until is not None or self._comment_depth:
            raise DamagedDump(f"it is cut off: it ends in a quote or comment, at line {self._line}")
        if _HEADER.search(begin) and not self._complete:
            message = (
                f"it is cut off after line {self._line}: the line that pg_dump writes at the end is missing"
            )
            raise DamagedDump(message)

    def _read(self, data: bytes, begin: bytes) -> bytes:
        """Read whole lines; return what is passed on."""
        header = _HEADER.search(begin)
        if header and b"-- PostgreSQL database %sdump complete" % (header[1] or b"") in data:
            self._complete = True
        passed: list[bytes] = []
        position = 0
        while position < len(data):
            if self._in_copy:
                match = _COPY_END.search(data, position)
                end = match.end() if match else len(data)
                self._in_copy = match is None
                self._line += data.count(b"\n", position, end)
                passed.append(data[position:end])
            else:
                end = data.find(b"\n", position) + 1 or len(data)
                self._line += 1
                passed.append(self._read_line(data[position:end]))
                self._in_copy, self._copy_follows = self._copy_follows, False
            position = end
        return b"".join(passed)

    def _read_line(self, line: bytes) -> bytes:
        if not self._held and self._read_plain(line):
            return line
        # What is held was read: it goes on behind that, in the state that it was left in.
        position, self._start, self._edits = len(self._held), 0 if self._held else None, []
        line, self._held = self._held + line, b""
        while position < len(line):
            if self._comment_depth:
                match = _COMMENT.search(line, position)
                if match:
                    self._comment_depth += 1 if match[0] == b"/*" else -1
            elif self._until is not None:
                match = self._until.search(line, position)
                if match and not match[0].startswith(b"\\"):  # an escaped character is no end
                    self._until = None
            else:
                match = (_ROUTINE_TOKEN if self._is_routine else _TOKEN).search(line, position)
                self._keep(line[position : match.start() if match else len(line)], position)
                if match and not self._take(line, match):
                    # A comment or a command of psql ends with its line; a held statement has several.
                    position = line.find(b"\n", match.start())
                    if position < 0:
                        break
                    continue
            if not match:
                break
            position = match.end()
        if self._rewrite and self._start is not None and NAMING.match(self._beginning):
            line = self._hold(line, self._start)
        for start, end, text in reversed(self._edits):
            line = line[:start] + text + line[end:]
        return line

    def _hold(self, line: bytes, start: int) -> bytes:
        """Keep a statement back that does not end in this line, until it does."""
        if len(line) - start > _MAX_HEAD_BYTES:
            raise UnsafeScript(f"line {self._line}: a command that may name roles is longer than 64 KiB")
        self._held = line[start:]
        return line[:start]

    def _release(self) -> bytes:
        """Return what is held at the end of the script: a statement that does not end."""
        held, self._held, self._rewrite = self._held, b"", None
        self._reset_statement()
        return self._read_line(held) if held else b""

    def _reset_statement(self) -> None:
        self._beginning, self._is_routine, self._until = b"", False, None
        self._comment_depth = self._parentheses = self._routine_depth = 0

    def _read_plain(self, line: bytes) -> bool:
        """Read a line of words and literals, at most with the end of an INSERT; return False if it has more."""
        if self._until is not None or self._comment_depth or self._is_routine or self._escapes:
            return False
        if b"\\" in line and _ESCAPE_LITERAL.search(line):
            return False
        code = _LITERAL.sub(b"?", line)
        if _NO_LITERAL.search(code):
            return False
        statement = self._beginning or code.lstrip()
        opened, closed = code.count(b"("), code.count(b")")
        if closed and _surplus(code) > self._parentheses:
            return False
        parentheses = self._parentheses + opened - closed
        if b";" in code:
            is_insert = statement[:6].lower() == b"insert"
            if not is_insert or parentheses or code.find(b";") != len(code.rstrip()) - 1:
                return False
            self._beginning = b""
        elif statement[:6].lower() == b"create" or (self._rewrite and NAMING.match(statement)):
            return False
        else:
            self._keep(code, 0)
        self._parentheses = parentheses
        return True

    def _take(self, line: bytes, match: re.Match[bytes]) -> bool:
        """Take a token; return False if the line has nothing more for it."""
        token = match[0]
        if token == b";":
            if self._parentheses or self._routine_depth:
                self._keep(b";", match.start())
            else:
                self._end_statement(line, match.start())
        elif token == b"--":
            self._keep(b" ", match.start())
            return False
        elif token == b"\\":
            self._read_meta(line, match.start())
            return False
        elif token == b"/*":
            self._comment_depth = 1
        else:
            self._keep(token, match.start())
            self._open(token)
        return True

    def _open(self, token: bytes) -> None:
        """Note what a token of the statement begins or ends."""
        if token in (b"'", b"e'", b"E'"):
            self._until = _ESCAPED_QUOTE if self._escapes or len(token) == 2 else _QUOTE
        elif token == b'"':
            self._until = _DOUBLE_QUOTE
        elif token.startswith(b"$"):
            self._until = re.compile(re.escape(token))
        elif token in (b"(", b")"):
            self._parentheses = max(0, self._parentheses + (1 if token == b"(" else -1))
        # The body of an SQL routine: BEGIN ATOMIC … END, with CASE … END in it.
        elif token.lower() == b"begin" or (token.lower() == b"case" and self._routine_depth):
            self._routine_depth += 1
        elif token.lower() == b"end" and self._routine_depth:
            self._routine_depth -= 1

    def _keep(self, code: bytes, position: int) -> None:
        """Keep the beginning of the statement, without comments and what is quoted."""
        if not self._beginning:
            stripped = code.lstrip()
            position, code = position + len(code) - len(stripped), stripped
            if code:
                self._start = position
        limit = _MAX_HEAD_BYTES if self._beginning[:4].lower() == b"copy" else _HEAD_BYTES
        self._beginning += code[: max(0, limit - len(self._beginning))]
        if not self._is_routine and self._beginning[:6].lower() == b"create":
            self._is_routine = bool(_ROUTINE.match(self._beginning))

    def _end_statement(self, line: bytes, position: int) -> None:
        """Judge the statement that ends at this position of the line."""
        statement, self._beginning, self._is_routine = self._beginning.strip(), b"", False
        start = self._start
        if self._atomic and (match := _BLOCK.match(statement) or _UNDOING.match(statement)):
            if _UNDOING.match(statement) or start is None or line[position : position + 1] != b";":
                command = b" ".join(match[0].split()).decode().upper()
                raise UnsafeScript(
                    f"line {self._line}: {command} ends the transaction that it is loaded in;"
                    " leave the command out, or load it with --no-transaction"
                )
            self._edits.append((start, position + 1, b""))
            self.left_out += 1
        elif (public := _CREATE_PUBLIC.match(statement)) and line[:position].rstrip().endswith(public[1]):
            # initdb has made it; pg_dump --schema=public writes it all the same.
            name = len(line[:position].rstrip()) - len(public[1])
            self._edits.append((name, name, b" if not exists"))
        elif escaping := _ESCAPING.match(statement):
            self._escapes = escaping[1].lower() == b"off"
        elif self._rewrite and start is not None and NAMING.match(statement):
            text, ends = self._rewrite(line[start:position]), line[position : position + 1] == b";"
            # `\g` ends a statement as a semicolon does, and is no part of the edit.
            self._edits.append((start, position + (ends and not text), text or (b"" if ends else b"select ")))
        self._copy_follows = self._copy_follows or bool(_COPY.match(statement))

    def _read_meta(self, line: bytes, position: int) -> None:
        """Judge a command of psql, which goes to the end of its line."""
        command = line[position:].partition(b"\n")[0]
        name = command[1:].split(maxsplit=1)[0] if command[1:].strip() else b""
        if name in (b"c", b"connect") and self._atomic:
            raise UnsafeScript(
                f"line {self._line}: \\connect leaves the transaction and the branch's database: the script is of"
                " several databases, as pg_dumpall writes it; load a dump of one database, made by pg_dump, or load"
                " this one with --no-transaction"
            )
        if name in (b"q", b"quit"):
            raise UnsafeScript(f"line {self._line}: \\{name.decode()} ends the load before the script's end")
        if _META_COPY.match(command):
            self._copy_follows = True
        elif name[:1] in (b"g", b";"):
            self._end_statement(line, position)


def _surplus(code: bytes) -> int:
    """Return how many of the parentheses that code closes were opened before it."""
    left = code.translate(None, _NO_PARENTHESES).replace(b"()", b"").replace(b"()", b"")
    if not left:
        return 0
    return -min(0, *accumulate(1 if byte == ord("(") else -1 for byte in left))
