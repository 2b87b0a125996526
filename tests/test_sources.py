"""Sources to documents: every kind, from any position on, over connections that break; and a sentence for everything that is no text."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dropping_server import DroppingServer
from hub_server import HubServer
from neurogen_numba.config import Text, Training
from neurogen_numba.errors import DataError
from neurogen_numba.text import sources
from neurogen_numba.text.batches import FileCorpus
from neurogen_numba.text.sources import open_source

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def documents(data):
    """The documents of a source, each as one text."""
    found, parts = [], []
    for piece in open_source(str(data), "text").read():
        parts.append(piece.text)
        if piece.ends:
            found.append("".join(parts))
            parts = []
    return found


def test_a_file_is_one_document_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_bytes("  é\t日本 \n\n".encode())
    assert documents(tmp_path / "a.csv") == ["  é\t日本 \n\n"]


def test_byte_order_mark_and_windows_line_ends_go(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xef\xbb\xbf")
    assert documents(tmp_path / "a.txt") == ["one\ntwo\rthree\n\ufeff"]


def test_a_folder_is_its_text_files_sorted_by_path(tmp_path):
    for name, text in {
        "b.txt": "B",
        "a/z.md": "Z",
        "a/deep/y.TXT": "Y",
        "a.txt": "A",
        "code.py": "no",
        "c.txt": " \n",
        "d.bin": "\0",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "folder.txt").mkdir()
    assert documents(tmp_path) == ["A", "Y", "Z", "B"]  # a.txt, a/deep/y.TXT, a/z.md, b.txt: "." sorts before "/"


@pytest.mark.parametrize(
    ("content", "output"),
    [
        (b"text\0text", "byte 4 is NUL"),
        (b"\xef\xbb\xbfcaf\xe9 au lait", "byte 6 is 0xe9"),
        ("text".encode("utf-16"), "UTF-16 text, not UTF-8 text; convert it: iconv"),
        (b"PK\3\4\x14\0", "a zip archive, .*; unpack it"),
        (b"\0" * 257 + b"ustar\0", "a tar archive, not UTF-8 text; unpack it"),
        (gzip.compress(b"text", mtime=0), "compressed by gzip, not UTF-8 text; give it a name that ends with .gz"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, output):
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^\S*data\.txt: .*{output}"):
        documents(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"missing\.txt: no such file or folder; "):
        documents(tmp_path / "missing.txt")
    with pytest.raises(DataError, match=r"the folder has no \.txt, \.md, .* or \.parquet file, hidden ones and runs left out; "):
        documents(tmp_path)
    for content, why in (("", "is empty"), (" \n\t\n", "has only white space")):
        (tmp_path / "a.txt").write_text(content)
        for data, what in ((tmp_path, "every text file in the folder"), (tmp_path / "a.txt", "the file")):
            with pytest.raises(DataError, match=f"{what} {why}; "):
                FileCorpus(Text(data=str(data)), Training())


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 text, byte 0 "):
        documents(tmp_path)


def test_what_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def denied(path, mode):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("secret")
    monkeypatch.setattr("builtins.open", denied)  # the superuser may read everything, whatever the file's mode
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(Permission denied\); "):
        documents(tmp_path / "a.txt")


# Sources that are read piece by piece

ROWS = [f"document {number}, café\r\nsecond line {'x' * (number % 7)}" for number in range(700)]


def json_lines(rows, field="text"):
    return "".join(json.dumps({"id": number, field: row}, ensure_ascii=number % 2 == 0) + "\n" for number, row in enumerate(rows)).encode()


def parquet(rows, field="text", group=100, compression="snappy"):
    table, buffer = pyarrow.table({"id": list(range(len(rows))), field: rows}), io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=group, compression=compression, use_dictionary=False)
    return buffer.getvalue()


def write(folder, **files):
    for name, content in files.items():
        (folder / name.replace("_", ".")).write_bytes(content)
    return folder


def texts(source, position=None):
    return [piece.text for piece in source.read(position)]


def every_kind(folder):
    """The argument of --data for each kind of source with ROWS."""
    lines = json_lines(ROWS)
    write(folder, a_jsonl=lines, a_ndjson=lines, a_json=lines, a_parquet=parquet(ROWS))
    write(folder, a_jsonl_gz=gzip.compress(lines), a_jsonl_zst=zstd.compress(lines[:9000]) + zstd.compress(lines[9000:]))
    parts = folder / "parts"
    parts.mkdir()
    write(parts, x1_jsonl=json_lines(ROWS[:300]), x2_parquet=parquet(ROWS[300:500]), x3_jsonl_gz=gzip.compress(json_lines(ROWS[500:])))
    hub = folder / "hub"
    hub.mkdir()
    write(hub, train_jsonl=lines, test_jsonl=json_lines(["a test"]))
    kinds = ["jsonl", "ndjson", "json", "parquet", "jsonl.gz", "jsonl.zst"]
    return [*(str(folder / f"a.{kind}") for kind in kinds), str(parts), str(parts / "x*"), f"hf:{hub}", f"hf:{hub}:default@train"]


def test_every_kind_of_source_gives_the_same_documents(tmp_path):
    for data in every_kind(tmp_path):
        pieces = list(open_source(data, "text").read())
        assert [piece.text for piece in pieces] == ROWS and all(piece.ends for piece in pieces), data
    assert texts(open_source(f"hf:{tmp_path / 'hub'}@test", "text")) == ["a test"]


@given(stops=st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=2))
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_goes_on_behind_any_piece(tmp_path, stops):
    folder = tmp_path / "all"
    kinds = every_kind(folder) if not folder.mkdir(exist_ok=True) and not any(folder.iterdir()) else KINDS
    KINDS[:] = kinds
    for data in kinds:
        source = open_source(data, "text")
        after = [piece.after for piece in source.read()]
        for stop in {*stops, 299, 499, len(ROWS) - 1}:  # the ends of files and groups of rows, too
            assert texts(source, json.loads(json.dumps(after[stop]))) == ROWS[stop + 1 :], (data, stop)


KINDS = []  # written once for all examples


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_large_text_comes_in_pieces_that_join_to_it(tmp_path, monkeypatch, end):
    monkeypatch.setattr(sources, "PIECE", 64)
    rng = random.Random(5)
    text = "".join(rng.choice(["café", "日本", "word ", "𝄞"]) * rng.randrange(9) + end for _ in range(400))
    write(tmp_path, a_txt=b"\xef\xbb\xbf" + text.encode(), a_txt_gz=gzip.compress(text.encode()), b_txt=b" \n", c_txt=b"end")
    for name in ("a.txt", "a.txt.gz"):
        source = open_source(str(tmp_path / name), "text")
        pieces = list(source.read())
        assert source.single and len(pieces) > 20
        assert "".join(piece.text for piece in pieces) == text.replace("\r\n", "\n")
        assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
        for stop, piece in enumerate(pieces):
            assert texts(source, piece.after) == [piece.text for piece in pieces[stop + 1 :]]
    several = list(open_source(str(tmp_path / "*.txt"), "text").read())
    assert [piece.text for piece in several if piece.ends][-1] == "end" and sum(piece.ends for piece in several) == 2  # b.txt is blank


def test_empty_documents_are_left_out_and_half_characters_mended(tmp_path):
    write(tmp_path, a_jsonl=b'{"text": ""}\n\n{"text": null}\n{"text": " \\n"}\n{"text": "a\\ud800b"}', b_parquet=parquet(["", None, "c"]))
    assert texts(open_source(str(tmp_path), "text")) == ["a?b", "c"]


def test_another_field(tmp_path):
    write(tmp_path, a_jsonl=json_lines(ROWS, "body"), a_parquet=parquet(ROWS, "body"))
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub", train_parquet=parquet(ROWS, "body"))
    for data in (str(tmp_path / "a.jsonl"), str(tmp_path / "a.parquet"), f"hf:{tmp_path / 'hub'}"):
        assert texts(open_source(data, "body")) == ROWS
        with pytest.raises(DataError, match=r"there is no field 'text', but id, body; name the one with the text by --text-field"):
            texts(open_source(data, "text"))
        with pytest.raises(DataError, match=r"has int instead of text; name another field with --text-field"):
            texts(open_source(data, "id"))


@pytest.mark.parametrize(
    ("name", "content", "output"),
    [
        ("a.jsonl", json_lines(ROWS)[:-5], r"a\.jsonl: line 700 is not a JSON object; .* the file must be whole"),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a\.jsonl: line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"id": ' + b"9" * 5000 + b"}\n", r"a\.jsonl: line 2 has an integer of more than 4,300 digits"),
        ("a.jsonl", b'{"text": "a"}\n{"id": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", r"a\.jsonl: line 2 has brackets .* too deep"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe9"}\n', r"a\.jsonl: line 2 has the byte 0xe9, which is no UTF-8; convert the file"),
        ("a.parquet", parquet(ROWS)[:-100], r"a\.parquet: cannot be read \(ArrowInvalid: .*; check that it is whole"),
        ("a.parquet", b"", r"a\.parquet: cannot be read"),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS), mtime=0)[:-20], r"a\.jsonl\.gz: cannot be read \(EOFError: "),
        ("a.jsonl.gz", json_lines(ROWS), r"a\.jsonl\.gz: cannot be read \(BadGzipFile: "),
        ("a.jsonl.zst", zstd.compress(json_lines(ROWS))[:-20], r"a\.jsonl\.zst: cannot be read \(EOFError: "),
        ("a.txt.gz", gzip.compress(b"text " * 9 + b"\0", mtime=0), r"a\.txt\.gz: not a text file, byte 45 is NUL"),
    ],
)
def test_damaged_files_are_one_sentence(tmp_path, name, content, output):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=output):
        texts(open_source(str(tmp_path / name), "text"))


def test_what_no_source_is_named_by_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"\*\.parquet: no file matches; "):
        open_source(str(tmp_path / "*.parquet"), "text")
    with pytest.raises(DataError, match=r"a\.parquet: no such file or folder; "):
        texts(open_source(str(tmp_path / "a.parquet"), "text"))
    with pytest.raises(DataError, match=r"hf:: not of the form hf:NAME\[:CONFIG\]\[@SPLIT\]"):
        open_source("hf:", "text")
    (tmp_path / "hub").mkdir()
    write(tmp_path / "hub", train_parquet=parquet(ROWS))
    with pytest.raises(DataError, match="cannot be read .*; check the name"):
        texts(open_source(f"hf:{tmp_path / 'hub'}@nonsense", "text"))
    with pytest.raises(DataError, match="cannot be read .*; check the name"):
        texts(open_source(f"hf:{tmp_path / 'hub'}:nonsense", "text"))


def test_standard_input(monkeypatch):
    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))

    given("one\r\ntwo é".encode())
    assert documents("-") == ["one\ntwo é"]
    given("one\r\ntwo é".encode())
    assert [(piece.text, piece.ends) for piece in open_source("-", "text").read()] == [("one\ntwo é", True)]
    for content, why in ((b"", "is empty"), (b"\n", "has only white space")):
        given(content)
        with pytest.raises(DataError, match=f"standard input {why}; "):
            FileCorpus(Text(data="-"), Training())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for read in (lambda: FileCorpus(Text(data="-"), Training()), lambda: texts(open_source("-", "text"))):
        with pytest.raises(DataError, match="standard input is a terminal; pipe the text in"):
            read()


@pytest.mark.parametrize(("content", "warned"), [(b'{"text": "one"}\n{"text": "two"}\n', 1), (b"{a set}\none\n", 0), (b"7\n8\n", 0)])
def test_standard_input_that_looks_like_json_lines_is_warned_of(monkeypatch, caplog, content, warned):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(content))))
    assert texts(open_source("-", "text")) == [content.decode()]
    assert [text for text in caplog.messages if "read as one text" in text] == caplog.messages and len(caplog.messages) == warned


def test_a_source_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.absolute("a/*.txt") == str(tmp_path / "a" / "*.txt")
    (tmp_path / "set").mkdir()
    assert sources.absolute("hf:./set@test") == f"hf:{tmp_path / 'set'}@test"
    for name in ("-", "", "hf:cerebras/SlimPajama-627B", "https://example.org/a.parquet"):
        assert sources.absolute(name) == name


def test_only_little_plain_text_is_held_in_memory(tmp_path, monkeypatch):
    write(tmp_path, a_txt=b"a" * 60, b_md=b"b" * 40, c_jsonl=b"", d_txt_gz=b"")
    monkeypatch.setattr(sources, "ENCODED_ONCE", 100)
    held = {data: sources.encoded_once(str(tmp_path / data)) for data in ("a.txt", "[ab]*", "c.jsonl", "d.txt.gz", ".", "missing.txt")}
    assert held == {"a.txt": True, "[ab]*": True, "c.jsonl": False, "d.txt.gz": False, ".": False, "missing.txt": True}
    assert sources.encoded_once("-") and not sources.encoded_once("hf:a/b") and not sources.encoded_once("https://example.org/a.txt")
    monkeypatch.setattr(sources, "ENCODED_ONCE", 99)
    assert not sources.encoded_once(str(tmp_path / "[ab]*"))


# Networks

TOLD = [f"{number}: {'word ' * (number % 50)}" for number in range(4000)]  # half a megabyte


@pytest.fixture
def hasty(monkeypatch):
    """No waiting; the waits that would have been are kept."""
    waits = []
    monkeypatch.setattr("neurogen_numba.text.remote.time.sleep", waits.append)
    return waits


def bit_by_bit(request):
    """Every answer breaks somewhere else, every third at once."""
    return 0 if request % 3 == 0 else 20_000 + request * 7919 % 30_000


def further_each_time(request):
    return request * 30_000


FILES = {"a.jsonl": json_lines(TOLD), "a.txt": "\n".join(TOLD).encode(), "a.parquet": parquet(TOLD, group=500, compression="none")}
FILES["a.jsonl.gz"] = gzip.compress(FILES["a.jsonl"], 0)  # 0: as large as it was


WAYS = {"broken": (bit_by_bit, True, True), "ended early": (bit_by_bit, True, False), "no ranges": (further_each_time, False, True)}


@pytest.mark.parametrize(
    ("name", "way"), [(name, way) for name in FILES for way in WAYS if (name, way) != ("a.parquet", "no ranges")]
)  # a parquet file is read from its end
def test_a_server_that_drops_connections_costs_no_document_and_no_duplicate(hasty, name, way):
    with DroppingServer({f"/{name}": FILES[name]}, *WAYS[way]) as server:
        read = texts(open_source(f"{server.url}/{name}", "text"))
        assert server.broken > 5
    assert "".join(read) == "\n".join(TOLD) if name == "a.txt" else read == TOLD


def test_waits_grow_and_are_told_and_then_it_is_one_sentence(hasty, caplog):
    lines = FILES["a.jsonl"]
    with DroppingServer({"/a.jsonl": lines}, lambda request: [100_000, 50_000, 0, 50_000][request - 1] if request < 5 else 0) as server:
        got, reading = [], open_source(f"{server.url}/a.jsonl", "text").read()
        with pytest.raises(
            DataError, match=r"a\.jsonl: the connection failed 7 times in a row, .* ConnectionError: .*; try again"
        ) as error:
            got.extend(reading)  # what came before the fault is kept
    assert hasty == [1, 1, 2, 1, 2, 4, 8, 16, 32] and "\n" not in str(error.value)
    tries = [(2, 1), (2, 1), (3, 2), (2, 1), (3, 2), (4, 4), (5, 8), (6, 16), (7, 32)]
    for text, (number, wait) in zip(caplog.messages, tries, strict=True):
        assert text.startswith(server.url) and text.endswith(f"; the next try is in {wait} s, try {number} of 7")
    assert [piece.text for piece in got] == TOLD[: len(got)] and len(json_lines(TOLD[: len(got) + 1])) > 200_000
    with DroppingServer({"/a.jsonl": lines}) as server:
        rest = list(open_source(f"{server.url}/a.jsonl", "text").read(got[-1].after))
    assert [piece.text for piece in got + rest] == TOLD


def test_a_file_that_changes_on_the_server_is_refused(hasty):
    files = {"/a.jsonl": FILES["a.jsonl"]}
    grow = DroppingServer(files, lambda request: files.update({"/a.jsonl": FILES["a.jsonl"] * 2}) or 50_000)
    with grow as server, pytest.raises(DataError, match=r"a\.jsonl: it has changed on the server, \d+ bytes where there were "):
        texts(open_source(f"{server.url}/a.jsonl", "text"))


def test_an_empty_file_on_a_server_has_no_documents(hasty):
    with DroppingServer({"/a.jsonl": b""}) as server:
        assert texts(open_source(f"{server.url}/a.jsonl", "text")) == []


def test_what_is_not_on_the_server_is_not_asked_for_again(hasty):
    with DroppingServer({}) as server, pytest.raises(DataError, match="there is no such file or data set"):
        texts(open_source(f"{server.url}/a.jsonl", "text"))
    assert hasty == []


def test_no_server_is_one_sentence(hasty):
    with DroppingServer({}) as server:
        url = server.url
    with pytest.raises(DataError, match="the connection failed 7 times in a row"):
        texts(open_source(f"{url}/a.parquet", "text"))


def test_a_hub_stream_that_breaks_goes_on_behind_the_last_document(tmp_path, hasty, monkeypatch):
    """`datasets` reads the files; one of its reads in three fails."""
    write(tmp_path, train_jsonl=json_lines(TOLD))
    iterate, broken = datasets.IterableDataset.__iter__, []

    def breaking(stream):
        for number, row in enumerate(iterate(stream)):
            if number == 700:
                broken.append(number)
                raise ConnectionError("Server Disconnected")
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", breaking)
    assert texts(open_source(f"hf:{tmp_path}", "text")) == TOLD
    assert len(broken) == 5 and hasty == [1] * 5


HUB = """
import json
import sys
import time

time.sleep = lambda seconds: None  # the hub's own client waits between its tries, too

from neurogen_numba.config import Text, Training
from neurogen_numba.errors import DataError
from neurogen_numba.text.sources import open_source

try:
    pieces = list(open_source(sys.argv[1], "text").read(json.loads(sys.argv[2])))
    print(json.dumps([[piece.text for piece in pieces], pieces[1500].after if len(pieces) > 1500 else None]))
except DataError as error:
    print(json.dumps(str(error)))
"""


def of_the_hub(url, folder, name, position=None):
    """What a process of its own reads from the hub at `url`: where that is, is settled at import."""
    root = Path(__file__).resolve().parent.parent
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(folder), "HF_UPDATE_DOWNLOAD_COUNTS": "0", "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", HUB, name, json.dumps(position)]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert all("; the next try is in " in line for line in done.stderr.splitlines()), done.stderr
    return json.loads(done.stdout)


def test_a_hub_that_drops_connections_costs_no_document_and_no_duplicate(tmp_path):
    files = {f"train-{part}.jsonl": json_lines(TOLD[part::2]) for part in range(2)}
    records = TOLD[0::2] + TOLD[1::2]
    bursts = {1, 3, *range(5, 12), *range(13, 20)}  # the client of the hub tries six times: of seven in a row we hear
    with HubServer("some/set", files, lambda request: request in bursts) as hub:
        read, after = of_the_hub(hub.url, tmp_path, "hf:some/set")
        assert read == records and hub.broken == len(bursts)
        assert of_the_hub(hub.url, tmp_path, "hf:some/set", after)[0] == records[1501:]
        assert "there is no such file or data set" in of_the_hub(hub.url, tmp_path, "hf:another/set")
    assert "the connection failed 7 times in a row" in of_the_hub(hub.url, tmp_path, "hf:some/set")
