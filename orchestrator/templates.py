"""Derived files as text: a template and facts in, bytes out, the same for the same input.

Templates are a publisher's, so they are hostile: of Jinja2's sandbox only reading facts, conditions, loops over
mappings and a few filters are left. No call, no arithmetic, no assignment and no attribute of any object can be
written, so that a template neither reaches Python nor costs more than its own size allows. Pure.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import bcrypt
from jinja2 import StrictUndefined, Template, TemplateError, nodes
from jinja2.sandbox import SandboxedEnvironment

from apps.problems import Refused

MAX_TEMPLATE: Final = 64 * 1024
"""Bytes of a template; configuration files are a few KiB."""
MAX_TEXT: Final = 1024 * 1024
"""Bytes of what it makes; bounds what two nested loops over 128 settings can write."""
MAX_NESTING: Final = 2
"""Loops inside loops."""
BCRYPT_COST: Final = 10
"""2^10 rounds, the default of bcrypt's own tools; 50 ms once for each password."""

MAX_HASHED: Final = 8
"""Lines of htpasswd in a template: bounds how long the first rendering takes."""

Facts = Mapping[str, Any]

_NODES: Final = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Const,
    nodes.Tuple,
    nodes.List,
    nodes.Filter,
    nodes.Test,
    nodes.Keyword,
    nodes.If,
    nodes.For,
    nodes.CondExpr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Concat,
)
_FILTERS: Final = ("default", "dictsort", "first", "int", "join", "last", "length", "lower", "sort", "trim", "upper")
_TESTS: Final = ("defined", "none", "true", "false", "eq", "ne", "in")


def rpcauth(password: str, user: str) -> str:
    """`user:salt$hash` as bitcoind's rpcauth= wants it: HMAC-SHA256 of the password under the salt's hex text.

    Source: bitcoin/share/rpcauth/rpcauth.py. The salt is derived from both, so that the line is always the same.
    """
    password = str(password)
    salt = hmac.new(password.encode(), f"archy rpcauth {user}".encode(), hashlib.sha256).hexdigest()[:32]
    return f"{user}:{salt}${hmac.new(salt.encode(), password.encode(), hashlib.sha256).hexdigest()}"


@lru_cache(maxsize=256)
def htpasswd(password: str, user: str) -> str:
    """`user:$2y$...`, a line of an htpasswd file (bcrypt), with a salt derived from both. Raises Refused."""
    raw = str(password).encode()
    if len(raw) > 72:
        raise Refused(f"bcrypt takes at most 72 bytes, and there are {len(raw)}", remedy="generate a shorter secret")
    seed = hashlib.sha256(b"archy htpasswd " + user.encode() + b"\0" + raw).digest()[:16]
    salt = f"$2b${BCRYPT_COST:02d}$".encode() + _bcrypt_base64(seed)
    return f"{user}:$2y${bcrypt.hashpw(raw, salt).decode()[4:]}"


def _bcrypt_base64(raw: bytes) -> bytes:
    """bcrypt's own alphabet over the ordinary bit order, without padding."""
    standard = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    own = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    return base64.b64encode(raw).rstrip(b"=").translate(bytes.maketrans(standard, own))


class _Environment(SandboxedEnvironment):
    """Only items of mappings can be read, whatever attributes the object has."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, Mapping) and attribute in obj:
            return obj[attribute]
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Mapping) and isinstance(argument, str) and argument in obj:
            return obj[argument]
        return self.undefined(obj=obj, name=str(argument))


def _environment() -> _Environment:
    environment = _Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    environment.globals.clear()
    environment.filters = {name: environment.filters[name] for name in _FILTERS} | {
        "base64": lambda value: base64.b64encode(str(value).encode()).decode(),
        "json": lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True),
        "rpcauth": rpcauth,
        "htpasswd": htpasswd,
    }
    environment.tests = {name: environment.tests[name] for name in _TESTS}
    return environment


_ENVIRONMENT: Final = _environment()


@lru_cache(maxsize=256)
def _compiled(text: str, where: str) -> Template:
    try:
        tree = _ENVIRONMENT.parse(text)
        _check(tree, where)
        if sum(1 for used in tree.find_all(nodes.Filter) if used.name == "htpasswd") > MAX_HASHED:
            raise _wrong(f"more than {MAX_HASHED} passwords to hash", where)
        return _ENVIRONMENT.from_string(text)
    except (TemplateError, RecursionError, MemoryError) as error:
        raise _wrong(f"the template is not right: {error}", where) from error


def _check(node: nodes.Node, where: str, loops: int = 0) -> None:
    if not isinstance(node, _NODES):
        raise _wrong(f"line {node.lineno}: a template can not have {type(node).__name__.lower()} here", where)
    if isinstance(node, nodes.Name) and node.name == "self":
        raise _wrong(f"line {node.lineno}: a template can not have self here", where)
    if isinstance(node, nodes.Filter) and node.name == "htpasswd" and loops:
        raise _wrong(f"line {node.lineno}: htpasswd is slow on purpose and can not be in a loop", where)
    if isinstance(node, nodes.For):
        loops += 1
        sorted_items = isinstance(node.iter, nodes.Filter) and node.iter.name == "dictsort"
        if loops > MAX_NESTING or node.recursive or not sorted_items:
            raise _wrong(f"line {node.lineno}: a loop is over `mapping|dictsort`, at most {MAX_NESTING} deep", where)
    for child in node.iter_child_nodes():
        _check(child, where, loops)


def fill(raw: bytes, facts: Facts, *, where: str) -> bytes:
    """The file's bytes. Raises Refused, naming the template and what it asks for; never a fact's value."""
    if len(raw) > MAX_TEMPLATE:
        raise _wrong(f"more than {MAX_TEMPLATE} bytes", where)
    try:
        template = _compiled(raw.decode(), where)
        made, size = [], 0
        for part in template.generate(facts):
            size += len(part)
            if size > MAX_TEXT:
                raise _wrong(f"it makes more than {MAX_TEXT} bytes", where)
            made.append(part)
    except UnicodeDecodeError as error:
        raise _wrong("the template is not UTF-8", where) from error
    except TemplateError as error:
        raise _wrong(str(error.message or "the template fails")[:200], where) from error
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        # Its text may quote a value
        raise _wrong(f"a filter does not fit what it is given ({type(error).__name__})", where) from error
    return "".join(made).encode()


def _wrong(what: str, where: str) -> Refused:
    return Refused(what, where=where, remedy="the publisher has to correct the template")
