"""Files and folders to documents, and a sentence for everything that is no text."""

from pathlib import Path

import pytest

from neurogen_numba.errors import DataError
from neurogen_numba.text.sources import documents, read_text


def test_a_file_is_one_document_as_it_stands(tmp_path):
    (tmp_path / "a.csv").write_bytes("  é\t日本 \n\n".encode())
    assert documents(tmp_path / "a.csv") == ["  é\t日本 \n\n"]
    assert read_text(str(tmp_path / "a.csv")) == "  é\t日本 \n\n"


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
    assert read_text(tmp_path) == "A\nY\nZ\nB"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"text\0text", "byte 4 is NUL"),
        (b"\xef\xbb\xbfcaf\xe9 au lait", "byte 6 is 0xe9"),
        ("text".encode("utf-16"), "byte 3 is NUL"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, content, said):
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"^\S*data\.txt: .*{said}.*; "):
        documents(path)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"missing\.txt: no such file or folder; "):
        documents(tmp_path / "missing.txt")
    with pytest.raises(DataError, match=r"the folder has no \.txt or \.md file; "):
        documents(tmp_path)
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(DataError, match="every text file in the folder is empty; "):
        documents(tmp_path)


def test_a_bad_file_in_a_folder_is_named(tmp_path):
    (tmp_path / "a.txt").write_text("good")
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"b\.txt: not UTF-8 text, byte 0 "):
        documents(tmp_path)


def test_what_may_not_be_read_is_refused(tmp_path, monkeypatch):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("secret")
    monkeypatch.setattr(Path, "read_bytes", denied)  # the superuser may read everything, whatever the file's mode
    with pytest.raises(DataError, match=r"a\.txt: cannot be read \(Permission denied\); "):
        documents(tmp_path / "a.txt")
