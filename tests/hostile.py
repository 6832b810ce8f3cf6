"""Input that nobody should send: generators, and a watch over what the code does with it.

Everything is drawn from a `random.Random` of a kind, a seed and a number, so that any input can be
made again from its name. test_hostile.py tries a fixed number of each kind, benchmarks/fuzz.py as
many as there is time for.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fitspace.core.errors import UserError

SECONDS = 600  # an input that takes longer hangs, on a busy machine too
MEMORY = 2 << 30  # more address space than this, in bytes, for one input is a bomb

# --- the watch --------------------------------------------------------------------------


class Slow(BaseException):
    """An input took too long. No ``except Exception`` may swallow it."""


_CHANGES = {  # audit event -> the paths that it changes: where each stands, and its folder
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.link": ((1, 3),), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.rmdir": ((0, 1),),
    "os.symlink": ((1, 2),), "os.truncate": ((0, 9),), "os.utime": ((0, 3),),
}  # fmt: skip
_NEVER = ("os.system", "os.exec", "os.posix_spawn", "socket.connect", "pickle.find_class")
_ALLOWED_PROGRAMS = ("git", "ldconfig", Path(sys.executable).name)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watch: dict[str, Any] = {"root": None, "seen": []}


def _place(path: Any, folder: int = -1) -> str | None:
    """Where a path is, its last link not followed; ``folder``: an open one that it starts from."""
    if not isinstance(path, str | bytes | os.PathLike):
        return None  # a file descriptor: its opening was seen
    start = f"/proc/self/fd/{folder}" if folder >= 0 else os.getcwd()
    parent, name = os.path.split(os.path.join(start, os.fsdecode(path).rstrip("/")))
    return os.path.join(os.path.realpath(parent), name)


def _look(event: str, arguments: tuple) -> None:
    root = _watch["root"]
    if root is None:
        return
    if event in _NEVER:
        _watch["seen"].append(f"{event} {arguments[:1]}")
        return
    if event == "subprocess.Popen":
        if Path(os.fsdecode(arguments[0])).name not in _ALLOWED_PROGRAMS:
            _watch["seen"].append(f"{event} {arguments[1]}")
        return
    if event == "open":
        written = [(arguments[0],)] if arguments[2] and arguments[2] & _WRITES else []
    else:
        written = [(arguments[i], *arguments[j : j + 1]) for i, j in _CHANGES.get(event, ())]
    for place in filter(None, (_place(*each) for each in written)):
        # A link in the project may be written through: then its target is what counts.
        followed = event == "open" and not arguments[2] & os.O_EXCL
        target = os.path.realpath(place) if followed else place
        harmless = target in ("/dev/null", root) or "/__pycache__/" in target
        if not harmless and not target.startswith(f"{root}/"):
            _watch["seen"].append(f"{event} {target}")


sys.addaudithook(_look)


@contextlib.contextmanager
def watched(root: Path) -> Iterator[None]:
    """Run with a limit on time and memory. Fails on a write outside ``root``, on a connection and
    on a program other than git and Python."""

    def late(*_):
        raise Slow(f"took longer than {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = signal.signal(signal.SIGALRM, late)
    _watch.update(root=os.path.realpath(root), seen=[])
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _watch["root"] = None
    assert not _watch["seen"], _watch["seen"]


def refused(call: Callable[[], Any]) -> bool:
    """Whether a call raised a UserError, which has to be fit to read; any other error goes on."""
    try:
        call()
    except UserError as error:
        assert error.problems, "an error without a problem"
        for problem in error.problems:
            assert isinstance(problem, str) and problem.strip(), problem
            assert len(problem) < 20_000, f"{len(problem)} characters: {problem[:200]}"
        return True
    return False


@dataclass(frozen=True)
class Kind:
    """A kind of input: ``attempt`` makes one from a `Random`, and says whether it was refused.

    ``root`` is the folder that nothing may be written outside of.
    """

    name: str
    root: Path
    attempt: Callable[[Random], bool]

    def __call__(self, seed: int, number: int) -> bool:
        with watched(self.root):
            return self.attempt(Random(f"{self.name}/{seed}/{number}"))


# --- text and values --------------------------------------------------------------------

SCRIPT = "<script>alert('x')</script>"
TEXTS = [
    "", " ", "\t", "\n", "a\nb", "a\r\nb", "\x00", "a\x00b", "\x1b[2J\x1b[31m", "\x7f", "\x85",
    SCRIPT, "</script><script>alert(1)</script>", "</style><img src=x onerror=alert(1)>",
    "</title></head><body onload=alert(1)>", "<svg/onload=alert(1)>", "--><!--", "]]>", "<!--",
    "\" onmouseover=\"alert(1)", "' onfocus='alert(1)", "javascript:alert(1)", "`${alert(1)}`",
    "<a href=javascript:alert(1)>x</a>", "<iframe src=//evil.example>", "&lt;b&gt;", "&#x3c;b>",
    "{{ 7*7 }}", "{% raw %}", "{{ ''.__class__.__mro__ }}", "{}", "{0}", "%s%n", "$\\frac{1", "$x$",
    "\\", "\\input{/etc/passwd}", "| a | b |", "[x](javascript:alert(1))", "![](http://evil.example)",
    "=1+1", "=HYPERLINK(\"http://evil.example\")", "@SUM(1)", "+1", "-1", "\"", "''", "a,b;c\td",
    "\u202egnp.exe\u202c", "\u2066x\u2069", "\u200bzero\u200d\ufeff", "\u05e9\u05dc\u05d5\u05dd",
    "\u0645\u06cc\u200c\u062e", "e\u0301\u0301\u0301", "Z\u0351\u036b\u0343" * 40, "\u2028\u2029",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\ufffe\uffff",
    "\U0010ffff",
    "\ud800", "a\udc80b", "\udcff", "..", ".", "../../etc/passwd", "/etc/passwd", "~", "~root/x",
    "a/../../b", "C:\\x", "\\\\host\\x", "file:///etc/passwd", "a b", "-rf", "--help", "CON", "a/",
    "//x", "x" * 300, "<" * 10_000, "x" * 10_000, "\U0001f600" * 2_500, "a " * 5_000,
    "nan", "NaN", "inf", "-inf", "1e999", "0x10", "1_000", "1e-3", "012", "null", "true", "None",
    "__import__('os').system('true')", "${jndi:ldap://x}", "$(touch x)", "`touch x`", "; touch x",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63) - 1, 2**64, 10**30, 10**400,
    0.5, -0.0, 1e-320, 1e-9, 1e15, 1e308, -1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip


def text(r: Random) -> str:
    kind = r.random()
    if kind < 0.6:
        return r.choice(TEXTS)
    if kind < 0.8:
        return "".join(r.choice(TEXTS)[:40] for _ in range(r.randint(1, 4)))
    ranges = ((0, 0x7F), (0x80, 0x2FF), (0x590, 0x6FF), (0x2000, 0x206F), (0x1F300, 0x1FAFF))
    return "".join(chr(r.randint(*r.choice(ranges))) for _ in range(r.randint(1, 12)))


def value(r: Random, depth: int = 0) -> Any:
    """Any value that JSON or YAML can hold."""
    kind = r.random()
    if kind < 0.4:
        return text(r)
    if kind < 0.65:
        return r.choice(NUMBERS)
    if kind < 0.8 or depth > 3:
        return r.choice([None, True, False, [], {}])
    if kind < 0.9:
        return [value(r, depth + 1) for _ in range(r.randint(1, 3))]
    return {text(r): value(r, depth + 1) for _ in range(r.randint(1, 3))}


def places(content: Any, at: tuple = ()) -> Iterator[tuple]:
    """The path of every value in nested dicts and lists, the whole first."""
    yield at
    items = enumerate(content) if isinstance(content, list) else ()
    if isinstance(content, dict):
        items = content.items()
    for key, inner in items:
        yield from places(inner, (*at, key))


def get(content: Any, path: tuple) -> Any:
    for key in path:
        content = content[key]
    return content


def with_value(content: Any, path: tuple, new: Any) -> Any:
    """A copy with another value at a path."""
    if not path:
        return new
    content = copy.deepcopy(content)
    get(content, path[:-1])[path[-1]] = new
    return content


def mutated(r: Random, content: Any, times: int | None = None) -> Any:
    """A copy with one to three values replaced, removed, renamed, doubled, moved or wrapped."""
    for _ in range(times or r.choice([1, 1, 1, 2, 3])):
        every = list(places(content))
        path = r.choice(every)
        act = r.random()
        old = get(content, path)
        if act < 0.55 or not path:
            content = with_value(content, path, value(r))
        elif act < 0.65:
            content = with_value(content, path, copy.deepcopy(get(content, r.choice(every))))
        elif act < 0.72:
            content = with_value(content, path, r.choice([[old], {"a": old}, [old, old], str(old)]))
        else:
            content = copy.deepcopy(content)
            parent, key = get(content, path[:-1]), path[-1]
            if act < 0.87 or isinstance(parent, list):
                del parent[key]
            else:
                parent[text(r)] = parent.pop(key)
    return content


def damaged(r: Random, content: bytes) -> bytes:
    """Bytes cut, flipped, doubled, or with others put in."""
    content = bytearray(content)
    for _ in range(r.choice([1, 1, 2, 5])):
        if not content:
            break
        at = r.randrange(len(content))
        act = r.random()
        if act < 0.45:
            content[at] ^= 1 << r.randrange(8)
        elif act < 0.6:
            content[at] = r.choice(b"\x00\xff\n\"'{}[]:,&*!\\0\x7f")
        elif act < 0.75:
            del content[at:]
        elif act < 0.85:
            del content[at : at + r.randint(1, 40)]
        elif act < 0.95:
            content[at:at] = content[at : at + r.randint(1, 80)] * r.randint(1, 3)
        else:
            content[at:at] = r.randbytes(r.randint(1, 20))
    return bytes(content)


_RAW_JSON = [
    b"", b" ", b"null", b"0", b"[]", b"{}", b'""', b"\xef\xbb\xbf{}", b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"[" * 100_000, b'{"a":' * 100_000, b"[" * 5_000 + b"]" * 5_000, b"1" * 10_000, b"NaN",
    b'{"a": 1e999}', b"-Infinity", b'"\\ud800"', b"{'a': 1}", b"{\"a\": 1,}", b"[1] [2]",
]  # fmt: skip


def json_bytes(r: Random, content: Any) -> bytes:
    """JSON as somebody or something may have left it: wrong here and there, or broken."""
    act = r.random()
    if act < 0.05:
        return r.choice(_RAW_JSON)
    if act < 0.75:
        content = mutated(r, content)
    whole = json.dumps(content, ensure_ascii=r.random() < 0.5)
    if 0.75 <= act < 0.8:  # one number, somewhere, is none that can be
        digits = [i for i, c in enumerate(whole) if c.isdigit()]
        at = r.choice(digits) if digits else 0
        wrong = r.choice(["NaN", "1e999", "-1e999", "9" * 5000, "1.", "01", "Infinity", "[" * 3000])
        whole = whole[:at] + wrong + whole[at + 1 :]
    encoded = whole.encode("utf-8", "surrogatepass")
    return damaged(r, encoded) if act >= 0.8 else encoded


# --- safetensors ------------------------------------------------------------------------


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined_safetensors(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


_DTYPES = ["BOOL", "U8", "I8", "I16", "F16", "BF16", "F32", "F64", "I64", "U64", "F8_E4M3", "C64"]
_DTYPES += ["F4", "F6_E2M3", "x", "", "f32"]
_SHAPES = [[], [0], [2**63], [0, 2**63], [2**40, 2**40], [-1], [1] * 80, [1.5], "3", [[3]], [1]]


def safetensors_bytes(r: Random, whole: bytes, facts: str = "fitspace") -> bytes:
    """A file whose header lies, whose facts are not ours, or whose bytes are broken.

    ``facts`` is the key of the JSON in its metadata.
    """
    header, data = split_safetensors(whole)
    names = [name for name in header if name != "__metadata__"]
    act = r.random()
    if act < 0.1:
        wrong = r.choice([0, 1, 2**63, 2**64 - 1, 2**40, 10**8 + 1, len(whole), len(whole) * 2, 7])
        return joined_safetensors(json.dumps(header).encode(), data, wrong)
    if act < 0.4 and facts in header.get("__metadata__", {}):
        inner = json_bytes(r, json.loads(header["__metadata__"][facts]))
        header["__metadata__"][facts] = inner.decode("utf-8", "replace")
    elif act < 0.7:
        for name in r.sample(names, min(len(names), r.choice([1, 1, 2]))):
            start, end = header[name]["data_offsets"]
            header[name] |= r.choice(
                [
                    {"dtype": r.choice(_DTYPES)},
                    {"shape": r.choice(_SHAPES)},
                    {"shape": header[name]["shape"][::-1]},
                    {"shape": [*header[name]["shape"], 1]},
                    {"data_offsets": [end, start]},
                    {"data_offsets": [start, end + r.choice([1, -1, 2**31, 2**63, 2**64])]},
                    {"data_offsets": [start + r.choice([1, -1, 8, 2**63]), end]},
                    {"data_offsets": r.choice([[0, 0], [0], [], None, ["a", "b"], [0.5, 1]])},
                ]
            )
    elif act < 0.78:
        name = r.choice(names)
        header[r.choice(["../" + name, "/etc/passwd", "", text(r), name + "\x00"])] = header[name]
        if r.random() < 0.7:
            del header[name]
    elif act < 0.84:
        name = r.choice(names)
        doubled = json.dumps(header)[:-1] + f', "{name}": {json.dumps(header[name])}}}'
        return joined_safetensors(doubled.encode(), data)
    elif act < 0.9:
        header = mutated(r, header)
    else:
        return damaged(r, whole) if r.random() < 0.8 else whole[: r.randrange(len(whole))]
    encoded = json.dumps(header).encode()
    return joined_safetensors(encoded + b" " * (-len(encoded) % 8), data)


# --- study files ------------------------------------------------------------------------

_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [*{b}, *{b}, *{b}, *{b}, *{b}, *{b}, *{b}, *{b}, *{b}]\n"
    for b, c in zip("abcdefgh", "bcdefghi", strict=True)
)
_MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}, *a{i}, *a{i}]}}\n" for i in range(30)
)
RAW_YAML: dict[str, bytes] = {
    "alias bomb": _BOMB.encode(),
    "alias bomb as the title": (_BOMB + "title: *i\ntasks: *i\narms: *h\n").encode(),
    "merge bomb": _MERGES.encode(),
    "endless list": b"arms: &a [*a]\ntasks: *a\nseeds: *a\n",
    "endless mapping": b"train: &t {steps: *t, lr: *t}\nname: *t\n",
    "endless merge": b"train: &t\n  <<: *t\n",
    "deep flow": b"title: " + b"[" * 100_000,
    "deep mapping": b"title: " + b"{a: " * 50_000,
    "deep blocks": b"- " * 50_000,
    "deep but closed": b"title: " + b"[" * 400 + b"]" * 400,
    "many keys": b"\n".join(b"k%d: 1" % i for i in range(5_000)),
    "ten megabytes": b"title: " + b"x" * 10_000_000,
    "ten megabytes of keys": b"a: 1\n" * 2_000_000,
    "NUL": b"title: a\x00b\n",
    "controls": b"title: a\x1bb\n",
    "not UTF-8": b"title: \xff\n",
    "UTF-16": "title: x\n".encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbftitle: x\n",
    "lone surrogate": b'title: "\\ud800"\nname: "\\udc00"\n',
    "surrogate in bytes": b"title: \xed\xa0\x80\n",
    "escapes of a terminal": b'title: "\\e[2J"\n"\\e[31m": 1\n',
    "empty integer": b"seeds: [!!int '']\n",
    "integer of nothing": b"seeds: [!!int 'x', !!int '_', !!int '0x']\n",
    "sexagesimal": b"seeds: [1:2:3:99, 190:20:30.15]\n",
    "empty float": b"train: {lr: !!float ''}\n",
    "bool of nothing": b"title: !!bool x\n",
    "time of nothing": b"title: !!timestamp x\n",
    "impossible day": b"title: 2024-02-31\n",
    "time": b"title: 2024-02-01 10:00:00\nseeds: [2024-02-01]\n",
    "binary": b"title: !!binary 'xx?'\nname: !!binary 'eA=='\n",
    "set": b"tasks: !!set {a, b}\narms: !!set {a}\ntitle: !!omap [a: 1]\nseeds: !!pairs [a: 1]\n",
    "set of nothing": b"tasks: !!set x\n",
    "unhashable key": b"? [a, b]\n: 1\n? {a: b}\n: 2\n",
    "keys that are no text": b"1: a\nnull: b\n2.5: c\n2024-01-01: e\n? !!binary eA==\n: f\n",
    "inner keys that are no text": b"train: {1: a, null: b}\ntasks: [{1: 2}]\narms: [{null: 1}]\n"
    b"analysis: {transform: {1: log}, margins: {null: 1}}\n",
    "settings that are no text": b"arms: [{method: full, settings: {1: 2}, factors: {null: [1]}}]",
    "Python object": b"title: !!python/object/apply:os.system ['touch x']\n",
    "Python name": b"title: !!python/name:os.system\n",
    "Python module": b"title: !!python/module:antigravity\n",
    "own tag": b"title: !x y\n",
    "two documents": b"title: a\n---\ntitle: b\n",
    "directive": b"%YAML 9.9\n---\ntitle: a\n",
    "percent": b"%TAG ! tag:x\n---\n!a b\n",
    "unknown alias": b"title: *x\n",
    "anchor twice": b"title: &a x\nname: &a y\nbase: *a\n",
    "huge numbers": b"seeds: [" + b"9" * 5000 + b", 1e999, .inf, .nan, 0x" + b"f" * 5000 + b"]\n",
    "numbers everywhere": b"name: 1\ntitle: 2\nbase: 3\njudge: .nan\nseeds: .inf\n",
}


def study_bytes(r: Random, content: dict[str, Any]) -> bytes:
    import yaml

    act = r.random()
    if act < 0.06:
        return r.choice(sorted(RAW_YAML.items()))[1]
    if act < 0.85:
        content = mutated(r, content)
    # JSON, too, is YAML, and can hold what PyYAML would not write.
    if r.random() < 0.5:
        whole = json.dumps(content)
    else:
        whole = yaml.safe_dump(content, sort_keys=False, allow_unicode=r.random() < 0.5)
    encoded = whole.encode("utf-8", "surrogatepass")
    return damaged(r, encoded) if act >= 0.85 else encoded


# --- tables -----------------------------------------------------------------------------


def cell(r: Random) -> str:
    act = r.random()
    if act < 0.4:
        return str(r.choice(["a", "b", "c", 1, 2, 0.5, -3, 1e-300, 7]))
    if act < 0.6:
        return repr(r.choice(NUMBERS)) if r.random() < 0.9 else ""
    shown = text(r)[:200]
    if act < 0.8:
        return '"' + shown.replace('"', '""') + '"'
    return shown


def table_bytes(r: Random, columns: list[str]) -> bytes:
    """A table, for the most part sound, or anything at all in its cells, rows and header."""
    separator = r.choice([",", ",", ",", ";", "\t", "|"])
    names = list(columns)
    act = r.random()
    if act < 0.25:
        names[r.randrange(len(names))] = r.choice([*columns, "", " ", *(text(r) for _ in range(5))])
    lines = [separator.join(names)]
    for _ in range(r.choice([0, 1, 2, 12, 40])):
        sound = [str(round(r.gauss(5, 1), 3)), *(r.choice("uvw") for _ in names[1:])]
        if r.random() < (0.02 if act < 0.7 else 0.5):
            sound[r.randrange(len(sound))] = cell(r)
        if r.random() < 0.02:
            sound = sound[:-1] if r.random() < 0.5 else [*sound, cell(r)]
        lines.append(separator.join(sound))
    end = r.choice(["\n", "\n", "\r\n", "\r"])
    encoded = end.join(lines).encode("utf-8", "surrogatepass")
    act = r.random()
    if act < 0.05:
        return r.choice([b"", b"\xef\xbb\xbf", b"\x00" * 50, b"\n\n\n", b'"', b",,,\n,,,\n", b"y"])
    if act < 0.1:
        return r.choice([b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\n\n"]) + encoded
    return damaged(r, encoded) if act < 0.35 else encoded


def formula(r: Random, names: list[str], depth: int = 0) -> str:
    """Something like a formula, mostly one that can be read."""
    act = r.random()
    if act < 0.05:
        return text(r)[:100]
    if act < 0.45 or depth > 3:
        return r.choice([*names, *names, "1", "0", f"C({names[0]})", f"`{names[-1]}`"])
    if act < 0.85:
        sign = r.choice(["+", "+", "*", ":", "/", "-", "~", "**", "^", ""])
        return f"{formula(r, names, depth + 1)} {sign} {formula(r, names, depth + 1)}"
    if act < 0.95:
        power = r.choice(["", "", "^2", "^99999999999", "**0", "^-1"])
        return f"({formula(r, names, depth + 1)}){power}"
    inner = formula(r, names, depth + 1)
    return r.choice(
        [
            f"Error({inner})", f"I({inner})", f"np.log({inner})",
            f"__import__('os').system({inner})",
            f"C({inner})", f"{inner}.__class__", f"lambda: {inner}", f"[{inner}]", f"`{inner}`",
        ]
    )  # fmt: skip


RAW_FORMULAS = {
    "code": "y ~ __import__('os').system('touch x')",
    "code in a call": "y ~ C(__import__('os'))",
    "attribute": "y ~ a.__class__.__mro__",
    "deep": "y ~ " + "(" * 50_000 + "a" + ")" * 50_000,
    "deep errors": "y ~ " + "Error(" * 20_000 + "a" + ")" * 20_000,
    "endless sum": "y ~ " + "+".join(["a"] * 100_000),
    "explosion": "y ~ " + "*".join(f"x{i}" for i in range(60)),
    "power": "y ~ (" + "+".join(f"x{i}" for i in range(200)) + ")^200",
    "nested products": "y ~ " + "(a+b):" * 2_000 + "c",
    "huge power": "y ~ (a + b)^" + "9" * 5_000,
    "superscript": "y ~ (a + b)^\u00b2",
    "other digits": "y ~ (a + b)^\u0662",
    "NUL": "y ~ a\x00b",
    "newline": "y ~ a\n+ b",
    "surrogate": "y ~ \ud800",
    "nothing": "",
    "only tilde": "~",
    "many tildes": "~" * 1000,
    "quotes": "y ~ `a",
}
