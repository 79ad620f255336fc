from __future__ import annotations

import dataclasses

import pytest

from hyperlane.answer import TextStream
from hyperlane.cli.chat import Chat
from hyperlane.core import ChatMessage, TextDelta
from hyperlane.errors import Overloaded
from hyperlane.sdk import AutoDistributedModel
from hyperlane.testing.fake_generator import Answer, FakeGenerator
from hyperlane.testing.toy import toy_facts


class FakeServing:
    def __init__(self, service: FakeGenerator) -> None:
        self.service = service
        self.plan = service.status().plan

    def close(self) -> None:
        pass


class Scripted:
    """Reads scripted lines; an exception type in the script is raised."""

    def __init__(self, *said: str | type[BaseException]) -> None:
        self.said = list(said)

    def __call__(self) -> str:
        if not self.said:
            raise EOFError
        line = self.said.pop(0)
        if isinstance(line, str):
            return line
        raise line


def a_chat(service: FakeGenerator, *system: ChatMessage, **options: object) -> Chat:
    return Chat(AutoDistributedModel(FakeServing(service)), options, list(system))


def prompts(service: FakeGenerator) -> list[str]:
    return [service.tokenizer.decode(request.prompt) for request in service.requests]


def test_a_second_turn_holds_the_first(capsys):
    service = FakeGenerator([Answer(("One.",)), Answer(("Two.",))])
    a_chat(service, ChatMessage("system", "Be brief.")).loop(Scripted("first", "second"))
    assert capsys.readouterr().out == "One.\nTwo.\n"
    assert prompts(service)[1] == "system: Be brief.\nuser: first\nassistant: One.\nuser: second\nassistant: "


def test_reset_forgets_all_but_the_system_message():
    service = FakeGenerator()
    a_chat(service, ChatMessage("system", "S")).loop(Scripted("first", "/reset", "second"))
    assert prompts(service)[1] == "system: S\nuser: second\nassistant: "


def test_exit_ends_and_empty_lines_and_commands_are_not_sent(capsys):
    service = FakeGenerator()
    a_chat(service).loop(Scripted("", "   ", "/help", "/nonsense", "/exit", "never"))
    assert service.requests == []
    said = capsys.readouterr()
    assert said.out == ""
    assert "/reset" in said.err
    assert "/nonsense is no command" in said.err


def test_ctrl_c_at_the_prompt_does_not_end_the_program():
    service = FakeGenerator()
    a_chat(service).loop(Scripted(KeyboardInterrupt, "still here"))
    assert len(service.requests) == 1


class InterruptedStream:
    def __init__(self) -> None:
        self.cancelled = False

    def __iter__(self):
        yield TextDelta("half of", (1,))
        raise KeyboardInterrupt

    def __aiter__(self):
        raise NotImplementedError

    def cancel(self) -> None:
        self.cancelled = True


def test_ctrl_c_in_an_answer_stops_it_and_keeps_what_came(monkeypatch, capsys):
    service = FakeGenerator()
    chat = a_chat(service)
    stream = InterruptedStream()
    monkeypatch.setattr(chat.model, "chat_stream", lambda *_, **__: TextStream(stream))
    chat.loop(Scripted("tell me"))
    assert stream.cancelled
    assert chat.messages == [ChatMessage("user", "tell me"), ChatMessage("assistant", "half of")]
    assert "stopped" in capsys.readouterr().err


def test_a_refused_request_is_told_and_taken_back(capsys):
    service = FakeGenerator()
    service.refusal = Overloaded("the queue is full")
    chat = a_chat(service)
    chat.loop(Scripted("tell me"))
    assert "error: the queue is full" in capsys.readouterr().err
    assert chat.messages == []


def test_a_full_context_leaves_out_the_oldest_and_says_so(capsys):
    service = FakeGenerator([Answer(("y" * 30,))], facts=dataclasses.replace(toy_facts(), context=128))
    chat = a_chat(service, max_tokens=32)
    chat.loop(Scripted("x" * 40, "z" * 40))
    assert "the oldest 2 messages are left out" in capsys.readouterr().err
    assert prompts(service)[1].startswith("user: z")


def test_a_message_longer_than_the_context_is_not_sent(capsys):
    service = FakeGenerator(facts=dataclasses.replace(toy_facts(), context=128))
    chat = a_chat(service)
    chat.loop(Scripted("x" * 200))
    assert "too long" in capsys.readouterr().err
    assert service.requests == []


def test_an_answer_that_is_cut_is_said_to_be(capsys):
    a_chat(FakeGenerator(), max_tokens=2).loop(Scripted("x"))
    said = capsys.readouterr()
    assert said.out == "He\n"
    assert "the answer was cut" in said.err


@pytest.mark.parametrize("option", [{"temperature": 0.0}, {"seed": 4}])
def test_options_reach_every_request(option):
    service = FakeGenerator()
    a_chat(service, **option).loop(Scripted("a", "b"))
    name, value = next(iter(option.items()))
    assert [getattr(request.sampling, name) for request in service.requests] == [value, value]
