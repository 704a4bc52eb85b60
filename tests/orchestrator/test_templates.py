"""Templates of derived files: what they can say, and what a hostile one can not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from typing import Any

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apps.problems import Refused
from orchestrator.templates import fill

FACTS: dict[str, Any] = {
    "app": {"id": "hello"},
    "settings": {"items": "a trap", "prune": False, "size": 550, "names": "x"},
    "secrets": {"rpc-password": "s3cret", "long": "p" * 73},
}


def filled(template: str) -> str:
    return fill(template.encode(), FACTS, where="t").decode()


def test_facts_conditions_loops_and_filters_make_a_file() -> None:
    text = filled(
        "{# a comment #}[{{ app.id }}]\n"
        "{% if settings.prune %}prune=1\n{% else %}prune={{ settings.size }}\n{% endif %}"
        "{% for name, value in settings|dictsort %}{{ name }}={{ value|json }} {% endfor %}\n"
        "{{ secrets['rpc-password']|base64 }} {{ settings.none|default('-') }} {{ app|json }}\n"
    )
    assert text == ('[hello]\nprune=550\nitems="a trap" names="x" prune=false size=550 \nczNjcmV0 - {"id": "hello"}\n')


def test_rpcauth_is_bitcoinds_and_the_same_every_time() -> None:
    line = filled("{{ secrets['rpc-password']|rpcauth('archy') }}")
    user, _, rest = line.partition(":")
    salt, _, found = rest.partition("$")
    assert (user, len(salt)) == ("archy", 32)
    assert found == hmac.new(salt.encode(), b"s3cret", hashlib.sha256).hexdigest()
    assert filled("{{ secrets['rpc-password']|rpcauth('archy') }}") == line


def test_htpasswd_is_a_bcrypt_line_that_checks_and_is_the_same_every_time() -> None:
    line = filled("{{ secrets['rpc-password']|htpasswd('admin') }}")
    user, _, found = line.partition(":")
    assert user == "admin"
    assert found.startswith("$2y$10$")
    assert bcrypt.checkpw(b"s3cret", found.replace("$2y$", "$2b$").encode())
    assert not bcrypt.checkpw(b"other", found.replace("$2y$", "$2b$").encode())
    assert filled("{{ secrets['rpc-password']|htpasswd('admin') }}") == line
    with pytest.raises(Refused, match="at most 72 bytes"):
        filled("{{ secrets.long|htpasswd('admin') }}")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=50))  # type: ignore[arg-type]
def test_base64_is_that_of_the_standard_library(value: str) -> None:
    made = fill(b"{{ x|base64 }}", {"x": value}, where="t")
    assert base64.b64decode(made) == value.encode()


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ app.__class__ }}",
        "{{ settings.keys() }}",
        "{{ ''.format }}",
        "{{ 'a' * 999999999 }}",
        "{{ 2 ** 99999999 }}",
        "{{ range(10) }}",
        "{{ cycler }}",
        "{{ self }}",
        "{% set x = 'a' %}{{ x ~ x }}",
        "{% macro m() %}{% endmacro %}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{% for c in settings.names %}{% endfor %}",
        "{% for c in ['a' ~ 'b'] %}{% endfor %}",
        "{{ 'x'|center(999999999) }}",
        "{{ ('%s'|format('x')) }}",
        "{{ app|attr('__class__') }}",
        "{{ app|map('upper') }}",
        "{% filter upper %}x{% endfilter %}",
        "{% with a = 1 %}{% endwith %}",
        "{{ 'x'[0:1] }}",
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{{ nobody }}",
        "{{ secrets.nobody }}",
        "{{ app|sort|htpasswd(1, 2) }}",
        "{% for a, b in app|dictsort %}{{ b|htpasswd(a) }}{% endfor %}",
        "{{ 'x'|htpasswd('x') }}" * 9,
        "{% for a, b in app|dictsort %}{% for c, d in app|dictsort %}{% for e, f in app|dictsort %}x{% endfor %}"
        "{% endfor %}{% endfor %}",
    ],
)
def test_hostile_or_broken_template_is_refused_quickly_and_tells_no_secret(attack: str) -> None:
    begun = time.process_time()
    with pytest.raises(Refused) as caught:
        filled(attack)
    assert "s3cret" not in str(caught.value)
    assert time.process_time() - begun < 2


def test_a_setting_named_like_a_method_is_the_setting() -> None:
    assert filled("{{ settings.items }}") == "a trap"


def test_a_template_or_a_file_that_is_too_long_is_refused() -> None:
    with pytest.raises(Refused, match="more than 65536 bytes"):
        filled("x" * 65537)
    with pytest.raises(Refused, match="not UTF-8"):
        fill(b"\xff", {}, where="t")
    many = {f"k{n:03}": n for n in range(128)}
    text = "{% for a, b in x|dictsort %}{% for c, d in x|dictsort %}" + "y" * 100 + "{% endfor %}{% endfor %}"
    with pytest.raises(Refused, match="it makes more than 1048576 bytes"):
        fill(text.encode(), {"x": many}, where="t")
