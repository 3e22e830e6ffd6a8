"""Rows of a JSONL, CSV or Parquet file, one at a time, each with its line; a bad row is a Problem.

Nothing here knows the task. A row is a dict of JSON values; what is wrong with one row does not end the
reading, what is wrong with the file does.
"""

from __future__ import annotations

import csv
import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from distillctl.errors import MissingExtra, Problem
from distillctl.types import JSON

MAX_ROW = 10 * 2**20  # bytes
_MAX_DEPTH = 50
_WRITE_JSONL = "write one JSON object per line: {\"question\": \"...\", ...}"

# How csv words what a double quote without an end does: no row after it can be told.
_SWALLOWS = ("unexpected end of data", "field larger than field limit")

Row = tuple[int, dict[str, JSON] | Problem]  # line (1-based; in Parquet the row), and what stands there

_SIGNATURES = [
    (b"\x1f\x8b", "gzip: unpack it first"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet: unpack or export it"),
    (b"BZh", "bzip2: unpack it first"), (b"\xfd7zXZ\x00", "xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "zstd: unpack it first"), (b"PAR1", "Parquet: name it .parquet"),
    (b"SQLite format 3\x00", "an SQLite database: export it"), (b"ARROW1", "Arrow: save it as Parquet"),
    (b"\xff\xfe", "UTF-16 text: save it as UTF-8"), (b"\xfe\xff", "UTF-16 text: save it as UTF-8"),
    (b"%PDF", "a PDF"), (b"<!DOCTYPE", "a web page"), (b"<html", "a web page"), (b"<?xml", "XML"),
]


def read_rows(path: Path) -> Iterator[Row]:
    """Rows of a data file, by the end of its name: .jsonl, .ndjson, .json, .csv or .parquet.

    Raises MissingExtra for Parquet without pyarrow. Everything else comes as a Problem, line 0 where it is
    about the file. Blank lines are passed over.
    """
    readers: dict[str, Callable[[Path], Iterator[Row]]] = {
        ".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _jsonl, ".csv": _csv, ".parquet": _parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        yield 0, Problem("a data file is JSONL, CSV or Parquet", str(path), value=path.suffix,
                         hint="name it .jsonl, .csv or .parquet")
        return
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            yield 0, Problem("is not a file", str(path))
            return
        for line, row in reader(path):
            yield line, row if isinstance(row, Problem) else _flawless(row, path, line)
    except OSError as error:
        yield 0, Problem(f"cannot be read: {error.strerror or error}", str(path))


# --- JSONL


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        if problem := _foreign(path, file) or _no_jsonl(path, file):
            yield 0, problem
            return
        for line, raw in _lines(file):
            if raw is None:
                yield line, _too_long(path, line)
            elif raw.strip():
                yield line, _object(raw.rstrip(), f"{path}:{line}")


def _object(raw: bytes, where: str) -> dict[str, JSON] | Problem:
    try:
        row = json.loads(raw.decode(), object_pairs_hook=_fields, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return _not_utf8(error, where)
    except RecursionError:
        return Problem("is nested too deeply", where)
    except json.JSONDecodeError as error:
        what = f"is not JSON: {error.msg.removesuffix(' at')} at character {error.pos + 1}"
        return Problem(what, where, hint=_WRITE_JSONL)
    except ValueError as error:
        return Problem(f"is not JSON: {error}", where, hint=_WRITE_JSONL)
    if not isinstance(row, dict):
        return Problem(f"is {_kind(row)}, not a JSON object", where, hint=_WRITE_JSONL)
    return row


def _fields(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    fields = {sys.intern(name): value for name, value in pairs}  # a million rows share their names
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return fields


def _no_constant(name: str) -> JSON:
    raise ValueError(f"{name} is no JSON number")


def _no_jsonl(path: Path, file: BinaryIO) -> Problem | None:
    """What a file is that was named JSONL and is not, where its beginning tells."""
    start = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    first = start.split(b"\n", 1)[0].strip()
    if first.startswith(b"["):
        what = "is one JSON array"
    elif first == b"{":
        what = "is JSON written over several lines"
    elif start and not first.startswith(b"{") and (b"," in first or b"\t" in first or b";" in first):
        return Problem("looks like CSV", f"{path}:1", value=first[:60].decode(errors="replace"),
                       hint="name it .csv if it is, else " + _WRITE_JSONL)
    else:
        return None
    return Problem(what, f"{path}:1", hint=_WRITE_JSONL)


# --- CSV


def _csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MAX_ROW)
    with path.open("rb") as file:
        if problem := _foreign(path, file):
            yield 0, problem
            return
        broken: list[Row] = []
        reader = csv.reader(_text_lines(path, file, broken), strict=True)
        header: list[str] | None = None
        start = 1
        for cells in _cells(reader):
            line, start = start, reader.line_num + 1
            undone = bool(broken)
            yield from broken
            broken.clear()
            if isinstance(cells, csv.Error):
                more = reader.line_num - line
                whole = header is None or (more and any(words in str(cells) for words in _SWALLOWS))
                if whole or not undone:
                    yield 0 if whole else line, _not_csv(cells, f"{path}:{line}", more)
                if whole:
                    return
            elif undone:
                if header is None:
                    return
            elif header is None:
                header = [sys.intern(name.strip()) for name in cells]
                if problem := _bad_header(header, path):
                    yield 0, problem
                    return
            elif len(cells) == len(header):
                yield line, dict(zip(header, cells, strict=True))
            elif cells:
                yield line, Problem(
                    f"has {len(cells)} cells, the header has {len(header)}", f"{path}:{line}",
                    hint="put cells that hold commas or line ends into double quotes")


def _cells(reader: Iterator[list[str]]) -> Iterator[list[str] | csv.Error]:
    """The rows; the reader goes on with the next line after one that is no CSV."""
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield error


def _not_csv(error: csv.Error, where: str, more: int) -> Problem:
    """more: lines after the first that the reader took for the same row."""
    also = f"; {more} more line{'s' if more > 1 else ''} taken for a part of this row" if more else ""
    return Problem(f"is not CSV: {error}{also}", where,
                   hint="look for a double quote that is not closed, or not doubled")


def _text_lines(path: Path, file: BinaryIO, broken: list[Row]) -> Iterator[str]:
    """Lines as text; for one that cannot be, its Problem goes to `broken` and a blank to the reader."""
    for line, raw in _lines(file):
        text = ""
        if raw is None:
            broken.append((line, _too_long(path, line)))
        else:
            try:
                text = raw.decode()
            except UnicodeDecodeError as error:
                broken.append((line, _not_utf8(error, f"{path}:{line}")))
                text = raw.decode(errors="replace")
        yield text or "\n"


def _bad_header(header: list[str], path: Path) -> Problem | None:
    where = f"{path}:1"
    if "" in header:
        return Problem(f"column {header.index('') + 1} has no name in the header", where)
    if twice := sorted({name for name in header if header.count(name) > 1}):
        return Problem("a column name is there twice", where, value=twice[0])
    if len(header) == 1 and (mark := next((m for m in (";", "\t", "|") if m in header[0]), None)):
        return Problem(f"the columns are parted by {mark!r}, not by commas", where,
                       hint="save it as CSV with commas")
    return None


# --- Parquet


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra(Problem("reading Parquet needs pyarrow", str(path),
                                   hint="pip install 'distillctl[parquet]'")) from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            dated = [column.name for column in file.schema_arrow if pyarrow.types.is_temporal(column.type)]
            rows = (row for batch in file.iter_batches(batch_size=1000) for row in batch.to_pylist())
            for number, row in enumerate(rows, 1):
                yield number, row | {name: str(row[name]) for name in dated if row[name] is not None}
    except (pyarrow.ArrowException, ValueError) as error:
        yield 0, Problem(f"is not Parquet: {' '.join(str(error).split())[:200]}", str(path))


# --- what all share


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines, without a byte order mark; None for one above MAX_ROW, which is never held whole."""
    number = 0
    while raw := file.readline(MAX_ROW + 1):
        number += 1
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if len(raw) <= MAX_ROW:
            yield number, raw
            continue
        while raw and not raw.endswith(b"\n"):
            raw = file.readline(MAX_ROW)
        yield number, None


def _foreign(path: Path, file: BinaryIO) -> Problem | None:
    """What a file is that holds no text, by its first bytes."""
    start = file.read(16)
    file.seek(0, os.SEEK_SET)
    looks = next((what for magic, what in _SIGNATURES if start.lower().startswith(magic.lower())), None)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        looks = "a Python pickle, which is code and is never loaded"
    if looks:
        return Problem(f"looks like {looks}", str(path), hint="the end of a file's name says how it is read")
    return None


def _too_long(path: Path, line: int) -> Problem:
    return Problem(f"is longer than {MAX_ROW // 2**20} MiB", f"{path}:{line}", hint="shorten or remove it")


def _not_utf8(error: UnicodeDecodeError, where: str) -> Problem:
    return Problem(f"is not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start + 1}",
                   where, hint="save the file as UTF-8")


def _flawless(row: dict[str, JSON], path: Path, line: int) -> dict[str, JSON] | Problem:
    for name, value in row.items():
        if flaw := _flaw(name) or _flaw(value):
            shown = name.encode(errors="replace").decode().replace("\0", "\\0")
            return Problem(flaw, f"{path}:{line}", shown)
    return row


def _flaw(value: JSON, depth: int = 0) -> str | None:
    """What of a value is no Unicode text or JSON; None where all is well."""
    if isinstance(value, str):
        if "\0" in value:
            return "holds a NUL character"
        if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
            return "holds half a surrogate pair, which is no character"
    elif isinstance(value, float):
        if not math.isfinite(value):
            return f"is {value}, which is no JSON number"
    elif isinstance(value, list | dict):
        if depth == _MAX_DEPTH:
            return f"is nested more than {_MAX_DEPTH} deep"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return next((flaw for item in inner if (flaw := _flaw(item, depth + 1))), None)
    elif value is not None and not isinstance(value, bool | int):
        return f"is a {type(value).__name__}, which JSON does not have: save the column as text"
    return None


def _kind(value: JSON) -> str:
    names = {str: "text", list: "a list", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
