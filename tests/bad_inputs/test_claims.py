"""Ledgers of claims that do not parse or judge nothing, and folders without a book."""

import json
from pathlib import Path

import pytest

from d3d.study.records import ROOT
from tests.bad_inputs.harness import BadInput, assert_refused
from tests.bad_inputs.test_records import RECORD

COMMAND = ("report", "claims", "--results", "r.jsonl")
CONDITION = {"contrast": "rgb", "metric": "iid/top1", "above": 0}
CLAIM = {"id": "H1", "statement": "s", "source": "t", "command": "c", "rule": {"all": [CONDITION]}}
LEDGER = {"seeds": 3, "claims": [CLAIM]}
PLAIN_PATH = "book/claims.yaml"
PATH = r"book/claims\.yaml"


def ledger(name: str, content: object, message: str) -> BadInput:
    """A ledger that `d3d report claims` refuses; JSON is YAML, and text is written as it is."""

    def write(folder: Path) -> None:
        (folder / "book").mkdir()
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / "book/claims.yaml").write_bytes(text.encode() if isinstance(text, str) else text)
        (folder / "r.jsonl").write_text(json.dumps(RECORD))

    return BadInput(name, COMMAND, write, rf"{PATH}{message}")


def claim(name: str, message: str, **fields) -> BadInput:
    return ledger(name, LEDGER | {"claims": [CLAIM | fields]}, f": claim {message}")


def condition(name: str, message: str, **fields) -> BadInput:
    return claim(name, f"H1, condition 1{message}", rule={"all": [CONDITION | fields]})


def contrast(text: object, message: str) -> BadInput:
    return condition(f"contrast {str(text)[:30]!a}", message, contrast=text)


def without(mapping: dict, name: str) -> dict:
    return {key: value for key, value in mapping.items() if key != name}


NO_LIST = " must hold seeds and a list of claims"
LEDGERS = [
    ledger("empty", "", NO_LIST),
    ledger("list", [1], NO_LIST),
    ledger("no claims", {"seeds": 3}, NO_LIST),
    ledger("claims null", {"seeds": 3, "claims": None}, NO_LIST),
    ledger("claims empty", {"seeds": 3, "claims": []}, NO_LIST),
    ledger("claims number", {"seeds": 3, "claims": 5}, NO_LIST),
    ledger("claims mapping", {"seeds": 3, "claims": {"H1": CLAIM}}, NO_LIST),
    ledger("no seeds", {"claims": [CLAIM]}, " has no seeds, which must be a whole number from 1 to 1000"),
    ledger("seeds zero", LEDGER | {"seeds": 0}, ": seeds must be a whole number from 1 to 1000, not 0"),
    ledger("seeds text", LEDGER | {"seeds": "3"}, ": seeds must be a whole number from 1 to 1000, not '3'"),
    ledger("seeds true", LEDGER | {"seeds": True}, ": seeds must be a whole number from 1 to 1000, not True"),
    ledger("seeds fraction", LEDGER | {"seeds": 2.5}, r": seeds must be a whole number from 1 to 1000, not 2\.5"),
    ledger("unknown key", LEDGER | {"margin": {}}, " has the unknown key 'margin'; there are seeds, .*, claims"),
    ledger("correction", LEDGER | {"correction": "bonferroni"}, ": correction must be holm, not 'bonferroni'"),
    ledger("margins list", LEDGER | {"margins": [1]}, r": margins must be numbers by metric, not \[1\]"),
    ledger("margin text", LEDGER | {"margins": {"top1": "x"}}, ": the margin of 'top1' must be a number .*, not 'x'"),
    ledger("margin zero", LEDGER | {"margins": {"top1": 0}}, ": the margin of 'top1' must be a number above 0, not 0"),
    ledger("margin NaN", "seeds: 3\nmargins: {top1: .nan}\nclaims: [1]", " holds nan in 'top1': .*"),
    ledger("anchors", "seeds: &s 3\nclaims: [*s]", " has an anchor or alias in line 1: .*"),
    ledger("a key twice", "seeds: 3\nseeds: 4\nclaims: [1]", " has the key 'seeds' twice.*"),
    ledger("Python object", "seeds: !!python/name:os.system\nclaims: [1]", " has the tag .*"),
    ledger("nested lists", "claims: " + "[" * 10**5, " nests lists and mappings more than 50 deep"),
    ledger("no UTF-8", b"\xff", " is no text in UTF-8.*"),
    ledger("claim number", LEDGER | {"claims": [5]}, ": claim 1 must map id, .* to values, not be 5"),
    ledger("claim null", LEDGER | {"claims": [CLAIM, None]}, ": claim 2 must map id, .* to values, not be None"),
    ledger("a claim twice", LEDGER | {"claims": [CLAIM, CLAIM]}, " lists a claim twice: H1"),
    ledger("a claim that follows one that follows",
           LEDGER | {"claims": [CLAIM, CLAIM | {"id": "H2", "rule": {"follows": "H1"}},
                                CLAIM | {"id": "H3", "rule": {"follows": "H2"}}]},
           ": claim H3 follows 'H2', which is not a claim with its own conditions"),
    ledger("no id", LEDGER | {"claims": [without(CLAIM, "id")]}, ": claim 1 has no id, which must be .*"),
    ledger("no rule", LEDGER | {"claims": [without(CLAIM, "rule")]}, ": claim H1 has no rule, which must be a rule .*"),
]  # fmt: skip
CLAIMS = [
    claim("id number", "1: id must be a capital letter and a number, such as H1 or H2b, not 5", id=5),
    claim("id with markup", r"<b>: id must be a capital letter and a number, such as H1 or H2b, not '<b>'", id="<b>"),
    claim("id of a million letters", "H+: id must be a capital letter and a number, .*, not 'H+.*'", id="H" * 10**5),
    claim("statement list", r"H1: statement must be text on one line, not \['x'\]", statement=["x"]),
    claim("statement of lines", r"H1: statement must be text on one line, not 'a\\nb'", statement="a\nb"),
    claim("statement empty", "H1: statement must be text on one line, not ''", statement=""),
    claim("claimed text", "H1: claimed must be a finite number, not 'x'", claimed="x"),
    claim("seeds of a claim zero", "H1: seeds must be a whole number from 1 to 1000, not 0", seeds=0),
    claim("unknown key of a claim", "H1 has the unknown key 'judged'; there are id, .*", judged=False),
    claim("rule text", "H1: rule must be a rule with one of: all, measured, report, follows, not 'all'", rule="all"),
    claim("rule of two kinds", "H1: rule must be a rule with one of: .*", rule={"all": [CONDITION], "follows": "H2"}),
    claim("rule of another kind", "H1: rule must be a rule with one of: .*", rule={"any": [CONDITION]}),
    claim("rule null", r"H1: all must list one condition or more, not None", rule={"all": None}),
    claim("rule empty", r"H1: all must list one condition or more, not \[\]", rule={"all": []}),
    claim("report empty", r"H1: report must list one condition or more, not \[\]", rule={"report": []}),
    claim("rule mapping", "H1: all must list one condition or more, not {.*", rule={"all": CONDITION}),
    claim("follows list", r"H1: follows must be the id of another claim, not \['H2'\]", rule={"follows": ["H2"]}),
    claim("follows itself", "H1 follows 'H1', which is not a claim with its own conditions", rule={"follows": "H1"}),
    claim("follows nobody", "H1 follows 'H9', which is not a claim with its own conditions", rule={"follows": "H9"}),
    claim("condition text", "H1, condition 1 must map contrast, .* to values, not be 'x'", rule={"all": ["x"]}),
    claim("reported bound", "H1, condition 1: .*, a reported one neither", rule={"report": [CONDITION]}),
    claim("no bound", "H1, condition 1: a judged .*", rule={"all": [without(CONDITION, "above")]}),
    claim("no contrast", "H1, condition 1 has no contrast.*", rule={"all": [without(CONDITION, "contrast")]}),
    condition("two bounds", ": a judged condition has one of above and below, a reported one neither", below=1),
    condition("bound text", ": above must be a finite number, not '0'", above="0"),
    condition("bound true", ": above must be a finite number, not True", above=True),
    condition("bound null", ": above must be a finite number, not None", above=None),
    condition("bound list", r": above must be a finite number, not \[0\]", above=[0]),
    condition("metric number", ": metric must be the name of a metric such as iid/top1, not 3", metric=3),
    condition("metric with markup", r": metric must be the name of a metric .*, not 'a`\|b'", metric="a`|b"),
    condition("unknown key of a condition", " has the unknown key 'equivalence_margin'; .*", equivalence_margin=1),
    ledger("bound infinite", json.dumps(LEDGER).replace('"above": 0', '"above": .inf'), " holds inf in 'above': .*"),
    contrast(5, ": contrast must be a contrast such as d3d - rgb, not 5"),
    contrast(["d3d"], r": contrast must be a contrast such as d3d - rgb, not \['d3d'\]"),
    contrast("", ": '' is not a contrast such as d3d - rgb"),
    contrast("rgb -", ": 'rgb -' is not a contrast such as d3d - rgb"),
    contrast("1/0", ": '1/0': it divides by zero"),
    contrast("rgb/0", ": 'rgb/0': it divides by zero"),
    contrast("rgb / (2 - 2)", r": 'rgb / \(2 - 2\)': it divides by zero"),
    contrast("1", ": '1' names no arm: write a contrast such as d3d - rgb"),
    contrast("max()", r": 'max\(\)': max needs one value or more, separated by commas"),
    contrast("max(1, 2)", r": 'max\(1, 2\)' names no arm.*"),
    contrast("max(rgb, key=d3d)", r": .*with max and min, such as d3d - rgb, without '=d3d\)'"),
    contrast("max(*rgb)", r": 'max\(\*rgb\)': a contrast is arithmetic .*"),
    contrast("sum(rgb)", ": .*an arm is no function; the functions are max, min"),
    contrast("9**9**9", ": .* is not a contrast such as d3d - rgb"),
    contrast("1e999 * rgb", ": .*a contrast is arithmetic on arms and numbers.*"),
    contrast("1e308 * 1e308 * rgb", ": .*it has a number that is not finite"),
    contrast("1" + "0" * 600, ": '10+.*0+' is not a contrast .*, of at most 500 characters"),
    contrast("(" * 300 + "rgb" + ")" * 100, ": .*, without more than 100 names, numbers and signs"),
    contrast("-" * 200 + "rgb", ": .*, without more than 100 names, numbers and signs"),
    contrast("rgb.real", r": .*, without '\.real'"),
    contrast("rgb[0]", r": .*, without '\[0\]'"),
    contrast("lambda: rgb", ": .*'lambda' is no arm"),
    contrast("rgb if rgb else rgb", ": .*'if' is no arm"),
    contrast("__import__('os').system('id')", ": .*, without .*"),
    contrast("3(rgb)", ": .*a contrast is arithmetic on arms and numbers.*"),
    contrast("rgb\n- rgb", r": .*, without '\\n- rgb'"),
    contrast("rgb\x1b[2J", r": .*, without '\\x1b\[2J'"),
    contrast("rgb − d3d", ": .*, without '− d3d'"),
]  # fmt: skip
BOOK = r"no ledger of claims at book/claims\.yaml: run this at the root of the repository"


def in_book(**files: str):
    """Writes the book's own ledger and files beside it; `__` in a name stands for `/`."""

    def write(folder: Path) -> None:
        contents = {"book/claims.yaml": (ROOT / "book/claims.yaml").read_text()}
        contents |= {name.replace("__", "/").replace("_md", ".md"): text for name, text in files.items()}
        for name, text in contents.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)

    return write


FOLDERS = [
    BadInput("claims without a book", ("report", "claims"), None, BOOK),
    BadInput("pages without a book", ("report", "pages"), None, BOOK),
    BadInput("readme without a book", ("report", "readme"), None, r"README\.md: No such file or directory"),
    BadInput("readme without markers", ("report", "readme"), in_book(README_md="x"), r".* must hold the markers.*"),
    BadInput("pages without results", ("report", "pages"), in_book(), "no records of 'bench' under .*"),
    BadInput("results that are missing", ("report", "claims", "--results", "x"), in_book(), "no records at x: give .*"),
    BadInput("ledger is a folder", ("report", "claims"), lambda f: (f / PLAIN_PATH).mkdir(parents=True), BOOK),
    BadInput("networks that are missing", ("report", "compare", "x\x1b"), None, r"no networks under x\\x1b: .*"),
    BadInput("networks of an archive", ("report", "compare", "x.jsonl"), None, r".* is published without logits.*"),
    BadInput("study to compare with is missing", ("report", "compare", ".", "--published", "x.jsonl"), None,
             r"no records at x\.jsonl: give .*"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*LEDGERS, *CLAIMS, *FOLDERS], ids=str)
def test_is_refused_in_one_sentence(case, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    assert_refused(case, folder)
