"""Tables of every format give the same rows; what is broken is one row's, or the run's."""

from __future__ import annotations

import csv
import datetime
import json
import os
import sys

import pytest
from platforms import not_on_windows

from deepgen_npu.errors import UsageError
from deepgen_npu.files import FileError
from deepgen_npu.tools.batch import tables
from deepgen_npu.tools.batch.rows import Defaults, read_rows
from deepgen_npu.tools.batch.tables import Broken, read_table


ROWS = [
    {"id": "a", "prompt": "a cat, \u201cred\u201d"},
    {"id": "\u732b", "prompt": '\u4e00\u53ea\u732b\nand "quotes"', "seed": 7, "steps": 3, "cfg": 2.5, "label": "x"},
    {"instruction": "make it blue", "image": "a.png", "n": 2, "follow_input": "pad", "keep_unchanged": True},
    {"prompt": "two", "images": ["a.png", "b c.png"], "mask": "m.png", "height": 64},
]


def cell(value: object) -> str:
    return json.dumps(value) if isinstance(value, (list, bool)) else str(value)


def separated(path, delimiter: str, encoding: str = "utf-8", newline: str = "\n") -> None:
    names = list(dict.fromkeys(name for row in ROWS for name in row))
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=newline)
        writer.writerow(names)
        for row in ROWS:
            writer.writerow([cell(row[name]) if name in row else "" for name in names])


def write(path, kind: str) -> None:
    if kind.startswith("json"):
        lines = [json.dumps(row, ensure_ascii="ascii" in kind) for row in ROWS]
        ending = "\r\n" if "crlf" in kind else "\n"
        content = ending.join(lines) + ("" if "open" in kind else f"{ending}  {ending}")
        path.write_bytes(content.encode("utf-8-sig" if "bom" in kind else "utf-8"))
    elif kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(
            pyarrow.Table.from_pylist(
                [
                    {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
                    for row in ROWS
                ],
                schema=pyarrow.schema(
                    [
                        *(
                            (name, pyarrow.string())
                            for name in (
                                "id",
                                "prompt",
                                "label",
                                "instruction",
                                "image",
                                "follow_input",
                                "images",
                                "mask",
                            )
                        ),
                        *((name, pyarrow.int64()) for name in ("seed", "steps", "n", "height")),
                        ("cfg", pyarrow.float64()),
                        ("keep_unchanged", pyarrow.bool_()),
                    ]
                ),
            ),
            path,
        )
    else:
        separated(
            path,
            "\t" if "tab" in kind else ",",
            "utf-8-sig" if "bom" in kind else "utf-8",
            "\r\n" if "crlf" in kind else "\n",
        )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("r.jsonl", "json"),
        ("r.ndjson", "json ascii open"),
        ("R.JSONL", "json bom crlf"),
        ("r.csv", "commas"),
        ("r.csv", "commas bom crlf"),
        ("r.tsv", "tab"),
        ("r.parquet", "parquet"),
    ],
)
def test_every_format_gives_the_same_rows(tmp_path, name, kind):
    write(tmp_path / name, kind)
    defaults = Defaults(seed=10)
    found = list(read_rows(tmp_path / name, defaults))
    first, second, third, fourth = found
    assert first.id == "a" and first.prompt == ROWS[0]["prompt"] and first.seed == 10 and not first.extra
    assert second.id == "\u732b" and second.prompt == ROWS[1]["prompt"] and second.extra == {"label": "x"}
    assert (second.seed, second.num_inference_steps, second.guidance_scale) == (7, 3, 2.5)
    assert third.id == "00000002" and third.prompt == "make it blue" and third.images == (str(tmp_path / "a.png"),)
    assert (third.n, third.follow_input, third.keep_unchanged, third.seeds) == (2, "pad", True, [12, 13])
    assert fourth.images == (str(tmp_path / "a.png"), str(tmp_path / "b c.png"))
    assert fourth.mask == str(tmp_path / "m.png") and (fourth.height, fourth.width) == (64, None)


def test_a_broken_line_of_json_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE", 2000)
    long = json.dumps({"prompt": "x" * 5000})
    deep = '{"a": ' + "[" * 70 + "]" * 70 + "}"
    deeper = '{"a": ' + "[" * 900 + "]" * 900 + "}"
    lines = ["{", "[1]", "null", long, deep, deeper, '{"prompt": "good"}', '{"seed": ' + "9" * 1900]
    path = tmp_path / "r.jsonl"
    path.write_text("\n".join(lines))
    found = list(read_table(path))
    assert len(found) == 8 and found[6] == {"prompt": "good"}
    reasons = [one.reason for one in found if isinstance(one, Broken)]
    assert reasons[0].startswith("the line is no JSON (Expecting")
    assert reasons[1:3] == [f"the line is a JSON {kind}, not an object" for kind in ("list", "NoneType")]
    assert reasons[3] == "the line has more than 2000 characters"
    assert reasons[4:6] == ["the line is nested deeper than 64 levels"] * 2
    assert reasons[6].startswith("the line is no JSON (")


def test_lines_of_half_a_megabyte_of_brackets_are_one_row(tmp_path):
    """More levels than Python itself can have."""
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": ' + "[" * 500_000 + '\n{"prompt": "good"}\n')
    assert list(read_table(path)) == [Broken("the line is nested deeper than 64 levels"), {"prompt": "good"}]
    cells = tmp_path / "r.csv"
    cells.write_text(f"prompt,images\nx,{'[' * 500_000}\ngood,\n")
    bad, good = read_rows(cells, Defaults())
    assert bad.error.startswith("images must be a path, or a list of paths as JSON, got") and good.prompt == "good"


def test_a_broken_line_of_csv_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_LINE", 1000)
    path = tmp_path / "r.csv"
    path.write_text(f'prompt,seed\na,1,2\n{"x" * 2000},1\n,\n\nb\n"c" d,3\ne,5\n"f,6\ng,7\n')
    found = list(read_table(path))
    reasons = [one.reason for one in found if isinstance(one, Broken)]
    assert [one for one in found if not isinstance(one, Broken)] == [{"prompt": "b"}, {"prompt": "e", "seed": "5"}]
    assert reasons[0] == "the line has 3 cells, but there are 2 columns"
    assert "field larger than field limit" in reasons[1] and "expected after" in reasons[2]
    assert "unexpected end of data" in reasons[3], "a quote that nothing closes is no prompt of many rows"
    csv.field_size_limit(131072)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}', "r.jsonl must be text in UTF-8, got another encoding."),
        ("r.csv", "prompt\n\u732b\n".encode("utf-16"), "r.csv must be text in UTF-8, got another encoding."),
        ("r.csv", b"", "r.csv must begin with the names of its columns, got []"),
        (
            "r.csv",
            b"id;prompt\n1;a\n",
            "r.csv must have columns separated by commas, got 'id;prompt'. Save it with that ",
        ),
        ("r.tsv", b"\n\n", "r.tsv must begin with the names of its columns, got []"),
        ("r.csv", b"prompt,a,prompt,\n", "r.csv must have each column once, got ['prompt']"),
        ("r.csv", b'"prompt\n', "r.csv cannot be read: unexpected end of data."),
        ("r.parquet", b"PAR1", "r.parquet cannot be read as Parquet ("),
        ("r.txt", b"", "r.txt must end in .jsonl, .ndjson, .csv, .tsv, .parquet, got 'r.txt'"),
    ],
)
def test_a_table_that_is_none_is_the_fault_of_the_run(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError) as caught:
        list(read_table(tmp_path / name))
    assert words in str(caught.value)


def test_what_cannot_be_opened_is_the_fault_of_the_run(tmp_path):
    with pytest.raises(FileError, match=r"r\.csv cannot be read: No such file or directory\."):
        list(read_table(tmp_path / "r.csv"))
    (tmp_path / "r.jsonl").mkdir()
    with pytest.raises(FileError, match=r"r\.jsonl must be a regular file, got a folder"):
        list(read_table(tmp_path / "r.jsonl"))


@not_on_windows("it has no named pipes in folders")
def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "r.jsonl")
    with pytest.raises(FileError, match="must be a regular file, got a named pipe"):
        list(read_table(tmp_path / "r.jsonl"))


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="Parquet files need pyarrow:"):
        list(read_table(tmp_path / "r.parquet"))


def test_what_a_parquet_has_beside_texts(tmp_path):
    """Lists are lists; dates, bytes and NaN of other columns become what JSON has."""
    import pyarrow
    from pyarrow import parquet

    row = {
        "prompt": "x",
        "images": ["a.png", "b.png"],
        "n": 2.0,
        "day": datetime.date(2026, 1, 2),
        "picture": {"bytes": b"\x89PNG", "path": None},
        "score": float("nan"),
        "scores": [1.5, float("inf")],
        "seed": None,
    }
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "r.parquet")
    (found,) = read_rows(tmp_path / "r.parquet", Defaults())
    assert found.n == 2 and found.seed == 42 and len(found.images) == 2
    assert found.extra == {
        "day": "2026-01-02",
        "picture": {"bytes": "4 bytes", "path": None},
        "score": None,
        "scores": [1.5, None],
    }
    json.dumps(found.extra, allow_nan=False)
