"""The reader of JSON and YAML returns what the standard readers return, and refuses what makes small files large."""

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from d3d import documents
from d3d.documents import DocumentError, parse_json, parse_yaml, read_bytes, read_json, read_yaml

NUMBERS = st.integers(-documents.MAX_INTEGER, documents.MAX_INTEGER) | st.floats(allow_nan=False, allow_infinity=False)
PLAIN = st.none() | st.booleans() | NUMBERS | st.text()
DOCUMENTS = st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)
# YAML writes other characters as escapes, which it does not read back in every case.
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126))
YAML_PLAIN = st.none() | st.booleans() | NUMBERS | WORDS
YAML_DOCUMENTS = st.recursive(YAML_PLAIN, lambda inner: st.lists(inner) | st.dictionaries(WORDS, inner), max_leaves=20)


@given(DOCUMENTS, st.booleans())
def test_json_reads_as_by_the_standard_library(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        content = text.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        content = text
    assert parse_json(content, "x") == json.loads(text) == value


@given(st.binary() | st.text(alphabet='{}[]",:01-.eE \\nulltrefas'))
def test_whatever_the_standard_library_refuses_is_refused(content):
    try:
        value = json.loads(content if isinstance(content, str) else content.decode())
    except (ValueError, RecursionError):
        with pytest.raises(DocumentError, match=r"^x "):
            parse_json(content, "x")
    else:
        try:
            parsed = parse_json(content, "x")
        except DocumentError as error:
            parsed = value if any(words in str(error) for words in ("twice", "finite", "64 bits", "deep")) else error
        assert parsed == value


@given(YAML_DOCUMENTS)
def test_yaml_reads_as_by_pyyaml(value):
    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data):
            return True

    text = yaml.dump(value, Dumper=Dumper)
    assert parse_yaml(text, "x") == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nests lists and mappings more than 50 deep"),
        ('{"a":' * 100_000, "nests lists and mappings more than 50 deep"),
        ("[" * 51 + "]" * 51, "nests lists and mappings more than 50 deep"),
        ('{"a": 1, "b": 2, "a": 3}', "has the key 'a' twice"),
        ('{"m": [{"x": NaN}]}', "holds nan in 'x': a number must be finite"),
        ('{"m": {"x": -1e999}}', "holds -inf in 'x': a number must be finite"),
        ("[-Infinity]", "holds -inf: a number must be finite"),
        (
            '{"m": 1' + "0" * 400 + "}",
            r"holds an integer of about 401 digits in 'm': .* at most 64 bits",
        ),
        ('{"m": ' + "9" * 5000 + "}", "holds a number of thousands of digits"),
        ("{} {}", "is not complete JSON: Extra data, line 1, column 4"),
        ("", "is not complete JSON"),
        ('{"a": "\0"}', "is not complete JSON"),
        (b"\xff", "is no text in UTF-8, from byte 1 on"),
        ("{}".encode("utf-16"), "is no text in UTF-8"),
    ],
)
def test_json_that_is_refused(content, message):
    with pytest.raises(DocumentError, match=f"^x {message}") as error:
        parse_json(content, "x")
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nests lists and mappings more than 50 deep"),
        ("? " * 1000, "nests lists and mappings more than 50 deep"),
        ("a: &x [1]\nb: [*x, *x]", "has an anchor or alias in line 1"),
        ("- 1\n- *x", "has an anchor or alias in line 2"),
        ("a: !!python/object/apply:os.system [id]", "has the tag '!!python/object/apply:os.system' in line 1"),
        ("a: !include b.yaml", "has the tag '!include' in line 1"),
        ("a: 1\nb: {c: 1, c: 2}", "has the key 'c' twice"),
        ("a: 1\n1: 2", "has the key 1 in line 2: a key is text, so quote it"),
        ("on: 1", "has the key True in line 1"),
        ("[a, b]: 1", r"has the key \['a', 'b'\] in line 1"),
        ("a: [.nan]", "holds nan in 'a': a number must be finite"),
        ("a: -.inf", "holds -inf in 'a'"),
        ("a: 1" + "0" * 400, "holds an integer of about 401 digits in 'a': a whole number has at most 64 bits"),
        ("a: " + "9" * 5000, "is no YAML file: a number does not parse"),
        ("a: 0x_", "is no YAML file: a number does not parse"),
        ("a: 1\n---\nb: 2", "is no YAML file: expected a single document .* found another document, line 2"),
        ("a: [", "is no YAML file: while parsing a flow node"),
        ("a: \0", "is no YAML file: character 4 is no printable text"),
        ("a: \x1b[31m", "is no YAML file: character 4 is no printable text"),
        (b"\xff\xfe", "is no text in UTF-8"),
    ],
)
def test_yaml_that_is_refused(content, message):
    with pytest.raises(DocumentError, match=f"^x {message}") as error:
        parse_yaml(content, "x")
    assert len(str(error.value)) < 250
    assert str(error.value).isprintable()


def test_dates_and_merge_keys_are_text():
    assert parse_yaml("a: 2026-13-45\n<<: {b: 1}\nc: =", "x") == {"a": "2026-13-45", "<<": {"b": 1}, "c": "="}


def test_python_writes_numbers_that_are_not_finite():
    assert parse_json('{"loss": Infinity}', "x", finite=False) == {"loss": float("inf")}


def test_a_byte_order_mark_is_ignored():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}', "x") == parse_yaml(b"\xef\xbb\xbfa: 1", "x") == {"a": 1}


def test_what_is_no_small_file_is_refused_by_name(tmp_path, monkeypatch):
    path = tmp_path / "a\x1b.json"
    path.write_text("[1, 2]")
    assert read_json(path, max_bytes=6) == [1, 2]
    with pytest.raises(DocumentError, match=r"a\\x1b.json is larger than .* MiB"):
        read_json(path, max_bytes=5)
    monkeypatch.setattr(documents, "MAX_YAML_BYTES", 5)
    with pytest.raises(DocumentError, match="is larger than"):
        read_yaml(path)
    with pytest.raises(DocumentError, match="is a folder, no file"):
        read_bytes(tmp_path)
    with pytest.raises(DocumentError, match="is a pipe or device, no file"):
        read_bytes("/dev/zero")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
