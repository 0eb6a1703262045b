"""English prose out of Python source, read with `ast`: docstrings without markup, code and tables.

`embedded.py` runs this file as a script in worker processes, so it imports the standard library
only, and nothing of this package.
"""

from __future__ import annotations

import ast
import gc
import inspect
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MIN_WORDS = 8  # shorter paragraphs are headings, labels and signatures rather than prose
# Modules with less text between triple quotes take half the time and hold a tenth of the prose.
MIN_DOCUMENTED_SHARE = 0.3

_BULLET = re.compile(r"(?:[-*+•]|\(?\d{1,2}[.)])\s+(?=\S)")
_DROPPED_SECTION = re.compile(
    r"(?i)(?:see also|references?|examples?|usage|example usage|citation|bibtex):?\Z"
)
_UNDERLINE = re.compile(r"([-=~^*#\"'`+.])\1{2,}\Z")
_DROPPED_DIRECTIVE = re.compile(
    r"\.\. +(?!(?:note|warning|tip|important|caution|hint|attention|admonition)::)[\w\[_|]"
)
_KEPT_DIRECTIVE = re.compile(r"\.\. +\w+:: *")
# ":param x: text", "name (type): text", "name: text", "Note: text", "Changed in version 3.2: text"
_ENTRY = re.compile(
    r"(?::\w[^:]*:|(?:Changed|Added|New|Deprecated) (?:in|since) version [\w.]+:"
    r"|[\w*.`'\"/]+(?: \((?:[^()]|\([^()]*\))*\))? ?:) +"
)

_MARKUP = [
    (":`", re.compile(r":(?:math|eq|cite)\S*:`[^`]*`"), "\0"),
    ("`~", re.compile(r"(?::\w[\w:+.-]*:)`~[\w.]*?(\w+)(?:\(\))?`"), r"\1"),
    ("<", re.compile(r"(?::\w[\w:+.-]*:)?`+([^`<>]+?)\s*<[^`<>]*>`+_*"), r"\1"),
    (":`", re.compile(r"(?::\w[\w:+.-]*:)`([^`]*)`"), r"\1"),
    ("`", re.compile(r"`+([^`]+)`+_*"), r"\1"),
    ("](", re.compile(r"\[([^\]]+)\]\([^)]*\)"), r"\1"),
    ("]_", re.compile(r"\s*\[[\w, *-]{1,20}\]_"), ""),
    ("**", re.compile(r"\*\*([^*]+)\*\*"), r"\1"),
    ("*", re.compile(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])"), r"\1"),
    ("_", re.compile(r"(?<!\w)_([^_\s][^_]*)_(?!\w)"), r"\1"),
    ("|", re.compile(r"\|([A-Za-z ]+)\|"), r"\1"),
    ("  ", re.compile(r"\s+"), " "),
]
_NOT_PROSE = re.compile(
    r"\0|>>>|https?:|www\.|::|[{}<>|\\^$@#]|==|\+=|->|\.\.\.|---|\[\[|TODO|FIXME|\bXXX\b"
)
_CODE_WORD = re.compile(
    r"\w*[_=/()\[\]]\w*\S*|\w+\.\w+\S*|\w*[a-z]\w*[A-Z]\w*|\S*\d\S*|[b-zB-HJ-Z]|[^A-Za-z]+"
)
_START = re.compile(r"[A-Z\"']")
_END = re.compile(r"[a-zA-Z0-9)\"'][.!?][)\"']?\Z")
_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been but by can do does for from has have how if in into is it its "
        "may more must no not of on only or other should so such than that the their them then "
        "there these they this to up used was we were what when where whether which while who "
        "will with would you your",
    )
)


def module_paragraphs(path: Path) -> list[str]:
    """Return the prose paragraphs of all docstrings of one module, in the order of the file.

    A file that is hardly documented has none. Neither has one that cannot be read, such as an
    editor's lock, or does not parse: packages ship templates and sources for other versions of
    Python.
    """
    try:
        source = path.read_text(encoding="utf-8")
        if sum(map(len, source.split('"""')[1::2])) < MIN_DOCUMENTED_SHARE * len(source):
            return []
        tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [paragraph for text in _docstrings(tree) for paragraph in prose_paragraphs(text)]


def topic_paragraphs(path: Path) -> list[list[str]]:
    """Return the paragraphs of each topic of `pydoc_data/topics.py`, the language reference."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    topics = next(ast.literal_eval(value) for value in values if isinstance(value, ast.Dict))
    return [prose_paragraphs(text) for text in topics.values()]


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Yield docstrings depth first; bodies only, since an expression cannot hold one."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
    for child in getattr(node, "body", ()):
        # numpy and torch document compiled functions by calls: add_newdoc(module, name, text).
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            yield from _call_docstrings(child.value)
        elif isinstance(child, ast.stmt):
            yield from _docstrings(child)


def _call_docstrings(call: ast.Call) -> Iterator[str]:
    name = str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))
    for argument in ast.walk(call) if "doc" in name else ():
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            yield inspect.cleandoc(argument.value)


def prose_paragraphs(docstring: str) -> list[str]:
    """Return the paragraphs of one docstring that read as English prose, one line each."""
    # Two thirds of the paragraphs cannot become prose, which is told cheaply.
    candidates = (
        text
        for text in _paragraphs(docstring)
        if text.count(" ") >= MIN_WORDS - 1 and text.rstrip(")\"'`*_ ").endswith((".", "!", "?"))
    )
    return [text for text in map(_strip_markup, candidates) if is_prose(text)]


def _paragraphs(docstring: str) -> Iterator[str]:
    """Yield runs of lines of one indentation; a bullet or a parameter's name begins another."""
    run: list[str] = []
    run_indent = 0
    for line in _without_code(docstring.expandtabs().splitlines()):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        bullet = _BULLET.match(text)
        if run and (not text or bullet or _ENTRY.match(text) or _breaks(run, run_indent, indent)):
            yield " ".join(run)
            run = []
        if bullet:
            text, indent = text[bullet.end() :], indent + bullet.end()
        if text:
            run_indent = run_indent if run else indent
            run.append(text)
    if run:
        yield " ".join(run)


def _breaks(run: list[str], run_indent: int, indent: int) -> bool:
    """Tell whether a line at `indent` leaves the run, or describes the name that the run is."""
    if indent <= run_indent:
        return indent < run_indent
    name = run[0]
    return len(run) == 1 and (name.endswith(":") or " : " in name or " " not in name)


def _without_code(lines: list[str]) -> Iterator[str]:
    """Yield each line, or an empty one for code, headings, directives and reference sections."""
    fenced = dropped_section = False
    skip_below: int | None = None
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text and skip_below is not None and indent <= skip_below:
            skip_below = None
        if text.startswith("```"):
            fenced = not fenced
            yield ""
        elif text and _UNDERLINE.match(following.strip()):
            dropped_section = bool(_DROPPED_SECTION.match(text))
            yield ""
        elif fenced or dropped_section or skip_below is not None or _UNDERLINE.match(text):
            yield ""
        elif _DROPPED_DIRECTIVE.match(text) or _DROPPED_SECTION.match(text):
            skip_below = indent
            yield ""
        else:
            if text.endswith("::") and not text.startswith(".."):
                skip_below = indent
            yield line[:indent] + _KEPT_DIRECTIVE.sub("", text)


def _strip_markup(text: str) -> str:
    for signs, pattern, replacement in _MARKUP:
        # Searching for the sign first is ten times as fast as letting the pattern fail.
        if signs in text:
            text = pattern.sub(replacement, text)
    return text[entry.end() :] if (entry := _ENTRY.match(text)) else text


def is_prose(text: str) -> bool:
    """Tell whether a paragraph is complete English sentences, not a heading, table or code."""
    words = text.split()
    if len(words) < MIN_WORDS or not _START.match(text) or not _END.search(text):
        return False
    if _NOT_PROSE.search(text):
        return False
    num_code_words = sum(map(_is_code_word, words))
    num_function_words = sum(word.lower() in _FUNCTION_WORDS for word in words)
    return num_code_words <= 0.15 * len(words) and num_function_words >= 0.2 * len(words)


@cache
def _is_code_word(word: str) -> bool:
    return _CODE_WORD.fullmatch(word.strip("().,;:!?\"'")) is not None


if __name__ == "__main__":  # a JSON list of module paths in, one of their paragraphs out
    # Syntax trees hold no cycles that outlive them; collecting garbage would take half the time.
    gc.disable()
    json.dump([module_paragraphs(Path(path)) for path in json.load(sys.stdin)], sys.stdout)
