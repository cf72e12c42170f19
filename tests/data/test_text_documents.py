"""Documents from every kind of file, and what is wrong with a file said with its name and place."""

import json
import lzma
import sys
from pathlib import Path

import pytest

from gradroute.data.text.datasets import TextFiles
from gradroute.data.text.documents import Documents, from_hub, read
from gradroute.errors import UserError

ROWS = [{"text": "a tree", "year": 1900, "kind": "tale", "tags": [1]}, {"text": "the sea"}, {"text": " \n"},
        {"text": "é\nb", "kind": "poem"}]  # fmt: skip
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "tinystories_sample.txt.xz"


def test_plain_text_is_one_document_or_several(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    (tmp_path / "b.txt").write_text("three\n<|endoftext|>\r\nfour <|endoftext|> five\n\n<|endoftext|>\n")
    (tmp_path / "notes.md").write_text("not read")
    found = read(tmp_path)
    assert found.texts == ["one\ntwo", "three", "four <|endoftext|> five"]
    assert found.columns == {"file": ["a.txt", "b.txt", "b.txt"]}
    assert read(tmp_path / "a.txt").texts == ["one\ntwo"] and read(tmp_path, limit=2).texts == found.texts[:2]


def test_json_lines_keep_scalar_fields_as_columns(tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "d.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    found = read(tmp_path / "d.jsonl.xz")
    assert found.texts == ["a tree", "the sea", "é\nb"]
    assert found.columns == {"year": ["1900", "", ""], "kind": ["tale", "", "poem"]}
    assert found.take([2, 0]) == Documents(["é\nb", "a tree"], {"year": ["", "1900"], "kind": ["poem", "tale"]})


def test_parquet_folders_are_read_in_order_and_as_datasets_reads_them(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs gradroute[hf]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs gradroute[hf]")
    for name, texts in {"1.parquet": ["c"], "0.parquet": ["a", "b"]}.items():
        parquet.write_table(pyarrow.table({"story": texts, "length": [len(t) for t in texts]}), tmp_path / name)
    found = read(tmp_path, "story")
    assert found == Documents(["a", "b", "c"], {"length": ["1", "1", "1"]})
    pytest.importorskip("datasets", reason="needs gradroute[hf]")
    assert from_hub(str(tmp_path), "train", "story") == found
    with pytest.raises(UserError, match=r"row 1: has no field 'text', .* story, length; set dataset.field=story"):
        from_hub(str(tmp_path), "train")
    with pytest.raises(UserError, match=r"split 'tset': cannot be loaded \["):
        from_hub(str(tmp_path), "tset", "story")


@pytest.mark.parametrize("package", ["datasets", "pyarrow"])
def test_a_missing_extra_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'gradroute\[hf\]'"):
        from_hub("some/stories", "train") if package == "datasets" else read(tmp_path)


def test_the_hash_sees_texts_columns_and_where_a_document_ends() -> None:
    same = [
        Documents(["a", "b"], {"x": ["1", "2"], "y": ["", ""]}),
        Documents(["a", "b"], {"y": ["", ""], "x": ["1", "2"]}),
    ]
    other = [Documents(["ab"]), Documents(["a", "b"]), Documents(["a", "b"], {"x": ["1", "3"], "y": ["", ""]})]
    assert same[0].sha256 == same[1].sha256 and len({d.sha256 for d in [*same, *other]}) == 4


MISTAKES: list[tuple[dict[str, bytes], str]] = [
    ({}, "FOLDER: no readable file; give .txt, .jsonl or .parquet"),
    ({"a.txt": b"x", "b.jsonl": b"{}"}, "FOLDER: 2 kinds of files, .jsonl, .txt; give"),
    ({"a.txt": b" \n"}, "a.txt: the file is empty"),
    ({"a.txt": b"<|endoftext|>\n"}, "FOLDER: has no document; every text is empty"),
    ({"a.txt": b"caf\xc3\xa9 \xe9t"}, "a.txt: byte 6 (0xe9) is not UTF-8"),
    ({"a.txt.xz": b"not xz"}, "a.txt.xz: cannot be read ("),
    ({"a.txt.xz": lzma.compress(b"ab\xff")}, "a.txt.xz: byte 2 (0xff) is not UTF-8"),
    ({"a.jsonl": b'{"text": "x"}\n{"txt": "y"}'}, "a.jsonl, line 2: has no field 'text', its fields are txt; set data"),
    ({"a.jsonl": b'{"n": 1, "t": "x", "story": "Once"}'}, "its fields are n, t, story; set dataset.field=story"),
    ({"a.jsonl": b'{"n": 1}'}, "has no field 'text', its fields are n; none of them is text"),
    ({"a.jsonl": b'{"text": 3}'}, "row 1: field 'text' is a int, not text"),
    ({"a.jsonl": b'\n{"text": }'}, "a.jsonl, line 2: is not JSON (Expecting value at column 10)"),
    ({"a.jsonl": b"[1]"}, "a.jsonl, line 1: is a list; give an object with 'text'"),
]


@pytest.mark.parametrize(("files", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_refused(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert message.replace("FOLDER", str(tmp_path)) in str(error.value) and "\n" not in str(error.value)


def test_a_damaged_parquet_file_and_a_missing_path_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs gradroute[hf]")
    (tmp_path / "a.parquet").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read as Parquet \("):
        read(tmp_path)
    with pytest.raises(UserError, match="nowhere: no such file or folder"):
        read(tmp_path / "nowhere")


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs the sample of real stories, which is not in the repository")
def test_the_real_sample_has_its_documents() -> None:
    assert len(read(SAMPLE)) == 6785


def test_documents_take_columns_from_a_folder_beside_them(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n<|endoftext|>\n".join(f"Story {n} is short." for n in range(10)))
    (tmp_path / "mine").mkdir()
    for name, numbers in (("train", range(6)), ("test", range(6, 10))):
        lines = ["kind", *("odd" if n % 2 else "even" for n in numbers)]
        (tmp_path / "mine" / f"{name}.csv").write_text("\n".join(lines))
    texts = TextFiles(str(tmp_path / "texts.txt"), test_stories=4, validation_stories=1, tokenizer="words",
                      metadata=str(tmp_path / "mine"))  # fmt: skip
    found = texts.tensors(train_limit=3, test_limit=2)
    assert found.train.documents.columns["kind"] == ["even", "odd", "even"]
    assert found.test.documents.columns["kind"] == ["even", "odd"] and found.validation is not None
    assert found.validation.documents.columns["kind"] == ["odd"] and "file" in found.train.documents.columns
    (tmp_path / "mine" / "test.csv").write_text("kind\nodd\n")
    with pytest.raises(UserError, match="1 lines for 4 documents; give a header and one line per document"):
        texts.tensors()
