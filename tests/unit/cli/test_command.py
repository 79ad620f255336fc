from __future__ import annotations

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from hyperlane.cli.command import command
from hyperlane.cli.flags import ApiFlags, CommonFlags, SamplingFlags, ServeFlags, WorkerFlags
from hyperlane.core import Address
from hyperlane.errors import DoesNotFit

SEEN: list[object] = []


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path):
    monkeypatch.setenv("HYPERLANE_HOME", str(tmp_path))
    SEEN.clear()


def invoke(function, *arguments: str):
    app = typer.Typer()
    app.command()(command(function))
    return CliRunner().invoke(app, list(arguments))


def keep_serve(
    *, model: Annotated[str, typer.Argument()], serving: ServeFlags, api: ApiFlags, common: CommonFlags
) -> None:
    SEEN.extend([serving.resolve(model, common), api.resolve(common)])


def keep_sampling(*, sampling: SamplingFlags) -> None:
    SEEN.append(sampling.given())


def keep_worker(*, worker: WorkerFlags, common: CommonFlags) -> None:
    SEEN.append(worker.resolve(common))


def fail(*, common: CommonFlags) -> None:
    raise DoesNotFit("3 GiB are missing")


def interrupt(*, common: CommonFlags) -> None:
    raise KeyboardInterrupt


def test_flags_of_a_group_reach_the_configuration():
    ran = invoke(keep_serve, "m", "--worker", "a:1", "-w", "b:2", "--slots", "2", "--port", "0", "--api-key", "k")
    assert ran.exit_code == 0, ran.output
    serve, api = SEEN
    assert serve.model == "m"
    assert serve.workers == (Address("a", 1), Address("b", 2))
    assert (serve.slots, serve.local_worker_count) == (2, 0)
    assert (api.port, api.key) == (0, ("k",))


@pytest.mark.parametrize(
    ("arguments", "cache"),
    [((), "all"), (("--prefix-cache", "prompts"), "prompts"), (("--no-prefix-cache",), "off")],
)
def test_the_prefix_cache_is_chosen_or_switched_off(arguments, cache):
    assert invoke(keep_serve, "m", *arguments).exit_code == 0
    assert SEEN[0].prefix_cache == cache


def test_variables_fill_what_no_flag_gives(monkeypatch):
    monkeypatch.setenv("HYPERLANE_SERVE_SLOTS", "9")
    assert invoke(keep_serve, "m").exit_code == 0
    assert SEEN[0].slots == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slots", "0"], "--slots: 0: must lie within"),
        (["--worker", "nonsense"], "is not HOST:PORT"),
        (["--memory", "lots"], "a size is wanted"),
        (["--config", "/does/not/exist.toml"], "does not exist"),
    ],
)
def test_a_wrong_value_is_a_line_and_exit_code_2(arguments, words):
    ran = invoke(keep_serve, "m", *arguments)
    assert ran.exit_code == 2
    assert words in ran.stderr
    assert "Traceback" not in ran.output


def test_only_sampling_options_that_are_given_are_passed_on():
    assert invoke(keep_sampling, "--temperature", "0", "--top-k", "5").exit_code == 0
    assert SEEN == [{"temperature": 0.0, "top_k": 5}]


def test_a_flag_without_value_that_is_not_given_leaves_the_file_its_say(monkeypatch):
    monkeypatch.setenv("HYPERLANE_WORKER_ANNOUNCE", "yes")
    assert invoke(keep_worker, "--listen", "0.0.0.0:7420").exit_code == 0
    assert SEEN[0].announce


def test_an_expected_error_is_one_line_with_its_exit_code():
    ran = invoke(fail)
    assert ran.exit_code == DoesNotFit.exit_code
    assert ran.stderr == "error: 3 GiB are missing\n"


def test_verbose_shows_where_an_error_came_from():
    assert "Traceback" in invoke(fail, "--verbose").stderr


def test_ctrl_c_is_130():
    ran = invoke(interrupt)
    assert ran.exit_code == 130
    assert ran.output == ""
