from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hyperlane import values
from hyperlane.config import ApiConfig, Paths, ServeConfig, Settings, WorkerConfig, load, meaning_of
from hyperlane.core import Address
from hyperlane.errors import ConfigError


def settings(tmp_path: Path, text: str = "", **environ: str) -> Settings:
    (tmp_path / "config.toml").write_text(text)
    return Settings.read({"HYPERLANE_HOME": str(tmp_path), **environ})


def test_defaults_need_no_file_and_no_variable(tmp_path):
    chosen = Settings.read({"HYPERLANE_HOME": str(tmp_path)}).resolve(ServeConfig)
    assert chosen == ServeConfig(paths=Paths.under(tmp_path))


def test_a_flag_beats_a_variable_beats_the_file_beats_the_default(tmp_path):
    said = settings(
        tmp_path,
        "[serve]\nslots = 2\nqueue = 5\nprompt_chunk = 32",
        HYPERLANE_SERVE_SLOTS="3",
        HYPERLANE_SERVE_QUEUE="6",
    )
    chosen = said.resolve(ServeConfig, slots=4)
    assert (chosen.slots, chosen.queue, chosen.prompt_chunk, chosen.device) == (4, 6, 32, "auto")


def test_a_flag_that_is_none_was_not_given(tmp_path):
    assert settings(tmp_path, "[api]\nport = 1").resolve(ApiConfig, port=None).port == 1


def test_an_empty_variable_says_nothing(tmp_path):
    assert settings(tmp_path, HYPERLANE_API_PORT="").resolve(ApiConfig).port == ApiConfig().port


def test_home_moves_cache_and_state(tmp_path):
    paths = settings(tmp_path).resolve(Paths)
    assert paths.models.is_relative_to(tmp_path)
    assert paths.ready.is_relative_to(tmp_path)
    assert paths.state.is_relative_to(tmp_path)


def test_the_file_moves_one_directory_for_every_role(tmp_path):
    said = settings(tmp_path, f"[paths]\ncache = '{tmp_path / 'elsewhere'}'")
    for role in (ServeConfig, WorkerConfig):
        paths = said.resolve(role).paths
        assert (paths.cache, paths.state) == (tmp_path / "elsewhere", tmp_path / "state")


def test_without_home_the_platforms_own_directories_are_used():
    assert "hyperlane" in str(Paths().cache)


@pytest.mark.parametrize(
    ("environ", "near"),
    [
        ({"HYPERLANE_SERVE_SLOT": "1"}, "HYPERLANE_SERVE_SLOTS"),
        ({"HYPERLANE_HOM": "x"}, "HYPERLANE_HOME"),
        ({"HYPERLANE_APIKEY": "x"}, "HYPERLANE_API_KEY"),
    ],
)
def test_an_unknown_variable_is_an_error_that_names_the_nearest(tmp_path, environ, near):
    with pytest.raises(ConfigError, match=f"{next(iter(environ))}.*did you mean {near}"):
        settings(tmp_path, **environ)


def test_variables_of_the_tests_are_not_settings(tmp_path):
    settings(tmp_path, HYPERLANE_TEST_MODEL="x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[serve]\nslotz = 1", "did you mean slots"),
        ("[server]\nslots = 1", "did you mean serve"),
        ("serve = 1", "must be a section"),
        ("[serve", "cannot be read"),
        ("[serve]\nslots = 'many'", r"\[serve\] slots: 'many': a whole number"),
        ("[serve]\nslots = true", "whole number"),
        ("[worker]\nlisten = 7420", "not be empty|not empty"),
    ],
)
def test_a_wrong_file_is_an_error_that_names_the_place(tmp_path, text, words):
    with pytest.raises(ConfigError, match=words):
        [settings(tmp_path, text).resolve(role) for role in (ServeConfig, WorkerConfig)]


def test_a_file_that_is_asked_for_must_exist(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        Settings.read({}, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="does not exist"):
        Settings.read({"HYPERLANE_CONFIG": str(tmp_path / "none.toml")})


def test_an_unknown_flag_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="did you mean context"):
        settings(tmp_path).resolve(ServeConfig, contex=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("slots", 0), ("slots", "x"), ("context", 3), ("threads", -1), ("device", "abacus"), ("load_timeout_s", 0.0)],
)
def test_a_value_out_of_range_is_refused_however_the_config_is_made(name, value):
    with pytest.raises(ConfigError, match=name):
        ServeConfig(**{name: value})


def test_addresses_are_read_from_lists_and_from_text_between_commas(tmp_path):
    expected = (Address("10.0.0.1", 1), Address("fe80::1", 2))
    assert (
        settings(tmp_path, HYPERLANE_SERVE_WORKERS="10.0.0.1:1, [fe80::1]:2").resolve(ServeConfig).workers == expected
    )
    said = settings(tmp_path, "[serve]\nworkers = ['10.0.0.1:1', '[fe80::1]:2']")
    assert said.resolve(ServeConfig).workers == expected


def test_an_address_without_a_port_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"--workers.*HOST:PORT"):
        settings(tmp_path).resolve(ServeConfig, workers=["10.0.0.1"])


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (ServeConfig(), 1),
        (ServeConfig(workers=("a:1",)), 0),
        (ServeConfig(workers=("a:1",), local_workers=2), 2),
        (ServeConfig(local_workers=3), 3),
    ],
)
def test_one_local_worker_starts_unless_others_are_given(config, count):
    assert config.local_worker_count == count


@pytest.mark.parametrize(
    ("text", "size"), [("4GiB", 4 << 30), ("512M", 512 << 20), ("1.5 kb", 1536), ("77", 77), (77, 77)]
)
def test_sizes_have_units(text, size):
    assert values.size(text) == size


@pytest.mark.parametrize("text", ["", "4 XiB", "-1", "0", "GiB", True])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError, match=r"size|bytes"):
        values.size(text)


@pytest.mark.parametrize(("text", "truth"), [("yes", True), ("ON", True), ("0", False), ("false", False)])
def test_words_for_truth(tmp_path, text, truth):
    assert settings(tmp_path, HYPERLANE_WORKER_ANNOUNCE=text).resolve(WorkerConfig).announce is truth


def test_every_field_says_what_it_means():
    for role in (ServeConfig, WorkerConfig, ApiConfig):
        for field in dataclasses.fields(role):
            if field.name != "paths":
                assert len(meaning_of(role, field.name)) > 10


def test_workers_that_were_named_or_numbered_are_all_used_and_those_that_were_found_are_not():
    named = {"workers": ("127.0.0.1:7420",)}
    assert [load(ServeConfig, **given).uses_all for given in (named, {"local_workers": 2}, {})] == [True, True, False]
    assert not load(ServeConfig, **named, use="best").uses_all
    assert load(ServeConfig, use="all").uses_all


@pytest.mark.parametrize(("name", "word"), [("optimize", "speed"), ("use", "some")])
def test_a_word_that_means_nothing_is_refused_with_those_that_do(name, word):
    with pytest.raises(ConfigError, match=rf"{name}.*must be \w+ or \w+"):
        load(ServeConfig, **{name: word})


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("all", ("all",)),
        ("0,2", ("0", "2")),
        ([0, 2], ("0", "2")),
        (1, ("1",)),
        ("CUDA:1, cpu,cpu", ("cuda:1", "cpu", "cpu")),
        ([], ()),
    ],
)
def test_devices_are_all_numbers_or_names(said, meant):
    assert WorkerConfig(devices=said).devices == meant


@pytest.mark.parametrize("said", ["auto", "gpu", "cuda:x", "cpu:1", "-1"])
def test_what_names_no_device_is_refused(said):
    with pytest.raises(ConfigError, match="devices"):
        WorkerConfig(devices=said)


@pytest.mark.parametrize("name", ["two words", "a=b", "a,b", "x" * 65, "bücher"])
def test_a_nodes_name_can_be_written_in_options(name):
    with pytest.raises(ConfigError, match="name"):
        WorkerConfig(name=name)
