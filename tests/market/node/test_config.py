"""Settings are read strictly, changed by words, and written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from market.errors import Problem, UsageProblem
from market.node.config import MAX_CONFIG_BYTES, NodeConfig, changed_config, load_config, save_config


def test_missing_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(tmp_path / "config.yaml") == NodeConfig()


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    changed = changed_config(
        NodeConfig(), ("listen=127.0.0.1:8470", "peers=http://192.0.2.1:1/,https://peer.example", "share=false")
    )
    save_config(tmp_path / "config.yaml", changed)
    assert load_config(tmp_path / "config.yaml") == changed
    assert changed.peers == ("http://192.0.2.1:1", "https://peer.example")
    assert changed.share is False


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("colour=red", "no setting 'colour'"),
        ("listen", "no setting 'listen'"),
        ("listen=nowhere", "HOST:PORT"),
        ("listen=127.0.0.1:99999", "HOST:PORT"),
        ("peers=ftp://x", "http://"),
        ("unit_prefix=../../x", "unit_prefix"),
        ("share=perhaps", "share"),
    ],
)
def test_bad_setting_names_the_key_and_what_would_be_right(word: str, told: str) -> None:
    with pytest.raises(UsageProblem) as refusal:
        changed_config(NodeConfig(), (word,))
    assert told in str(refusal.value)


@pytest.mark.parametrize("text", ["[1, 2]", "listen: {", "lisen: 1", "x" * (MAX_CONFIG_BYTES + 1)])
def test_bad_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(Problem) as refusal:
        load_config(path)
    assert refusal.value.where == str(path)


def test_unwritable_folder_keeps_the_old_settings(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "config.yaml"
    with pytest.raises(Problem):
        save_config(path, NodeConfig())
    assert not path.exists()
