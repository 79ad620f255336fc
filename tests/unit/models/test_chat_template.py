"""Conversations as token ids, and templates that mean no good."""

import tracemalloc
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyperlane.core import ChatMessage
from hyperlane.errors import InvalidRequest, UnsupportedModel
from hyperlane.models.chat_template import ChatTemplate, chat_template, required
from hyperlane.models.tokenizer import Tokenizer
from hyperlane.models.tokenizer_data import TokenizerData, TokenType

CONTROL = ["<s>", "<|im_start|>", "<|im_end|>"]
LETTERS = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["Ġ", "Ċ", "î", "Ģ", "ģ"]
MERGES = ["e r", "u s", "us er", "user Ċ", "Ċ Ċ", "h i"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim"
    " + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tokenizer(**fields: object) -> Tokenizer:
    tokens = [*CONTROL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
    kinds = [TokenType.CONTROL] * len(CONTROL) + [TokenType.NORMAL] * (len(tokens) - len(CONTROL))
    return Tokenizer(TokenizerData("gpt2", tokens, kinds, pre="gpt-2", merges=MERGES, bos_id=0, eos_id=2, **fields))


def user(*contents: str) -> list[ChatMessage]:
    return [ChatMessage("user", content) for content in contents]


def render(template: str, messages: list[ChatMessage] | None = None) -> str:
    clock = lambda: datetime(2025, 1, 2)  # noqa: E731
    return ChatTemplate(template, tokenizer(), clock).render(messages or user("hi"))


# --- what is a special token and what is text --------------------------------------------------------------------


def test_ids_are_those_of_the_rendered_text():
    words = tokenizer()
    template = ChatTemplate(CHATML, words)
    text = template.render(user("  hi\n\nuser\n", "x"))
    assert text == "<|im_start|>user\nhi\n\nuser<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert template.encode(user("  hi\n\nuser\n", "x")) == words.encode(text, parse_special=True)


def test_words_are_merged_across_the_border_of_template_and_message():
    words = tokenizer()
    ids = ChatTemplate("{{ messages[0].content }}er", words).encode(user("us"))
    assert ids == words.encode("user")
    assert len(ids) == 1


@given(st.lists(st.text(st.sampled_from("<|im_end|>start \n\ue000\ue001hi")), min_size=1, max_size=3))
def test_no_message_makes_a_special_token(contents):
    words = tokenizer()
    ids = ChatTemplate(CHATML, words).encode(user(*contents))
    expected: list[str | int] = []
    for content in contents:
        expected += [1, f"user\n{content.strip()}", 2, "\n"]
    assert ids == words.encode_fragments([*expected, 1, "assistant\n"])


def test_a_special_token_cannot_be_put_together_from_two_messages():
    words = tokenizer()
    template = ChatTemplate("{% for message in messages %}{{ message.content | trim }}{% endfor %}", words)
    assert template.encode(user("a<|im_ ", "end|>")) == words.encode("a<|im_end|>")


def test_a_role_cannot_smuggle_a_special_token_in():
    words = tokenizer()
    ids = ChatTemplate(CHATML, words).encode([ChatMessage("user<|im_end|>", "hi")])
    assert ids.count(2) == 1


def test_messages_keep_private_use_characters():
    assert ChatTemplate("{{ messages[0].content }}", tokenizer()).render(user("\ue000<|im_end|>")) == "\ue000<|im_end|>"
    words = tokenizer()
    assert words.decode(ChatTemplate("{{ messages[0].content }}", words).encode(user("\ue000<s>"))) == "\ue000<s>"


def test_bos_is_there_once():
    words = tokenizer(add_bos=True)
    assert ChatTemplate("{{ bos_token }}hi", words).encode([])[:2] == [0, *words.encode("hi")]
    assert ChatTemplate("hi", words).encode([]) == [0, *words.encode("hi")]
    assert ChatTemplate("hi", tokenizer()).encode([]) == words.encode("hi")


def test_the_prompt_for_an_answer_can_be_left_out():
    assert ChatTemplate(CHATML, tokenizer()).encode(user("hi"), add_generation_prompt=False)[-2] == 2


# --- what templates may do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{%- for m in messages -%}\n  {{ m['content'].strip() }}\n{% endfor %}", "hi\n"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        (
            "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        ("{% for i in [1, 2, 3] if i > 1 %}{{ i }}{% else %}none{% endfor %}", "23"),
        ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ messages[1:] | length }}{{ messages[::-1][0].role }}", "0user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}", "hi"),
        ("{{ {'a': [1, 'é', none]} | tojson }}", '{"a": [1, "é", null]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ strftime_now('%d %b %Y') }}", "02 Jan 2025"),
        ("{{ tools is none }}{{ documents is defined }}{{ nothing is defined }}", "TrueTrueFalse"),
        ("{% macro f(x, y=2) %}{{ x ~ y }}{{ caller() }}{% endmacro %}{% call f(1) %}c{% endcall %}", "12c"),
        ("{% generation %}a{% endgeneration %}b", "ab"),
        ("{{ '{}, {x} {{0}}'.format(1, x='b') }}{{ '{a}'.format_map({'a': 1.5}) }}", "1, b {0}1.5"),
        ("{{ 'a' in 'abc' and not 'x' in 'abc' }}{{ '%s-%d' % ('n', 3) }}{{ 'ab' * 2 }}{{ 7 % 4 }}", "Truen-3abab3"),
        ("{{ 'a\nb' | indent(2) }}|{{ 'aXX'.replace('X', 'b', 1) }}|{{ ' b ' | trim | upper }}", "a\n  b|abX|B"),
        ("{{ [1, 'a', none, (2, 3)] }}{{ messages[0].x }}{{ 2.567 | round(1) }}", "[1, 'a', None, (2, 3)]2.6"),
        ("{% for k, v in {'a': 1}.items() %}{{ k }}{{ v }}{{ ', '.join(['x', 'y']) }}{% endfor %}", "a1x, y"),
    ],
)
def test_templates_do_what_they_do_elsewhere(template, text):
    assert render(template) == text


def test_a_template_that_refuses_the_messages_says_why():
    with pytest.raises(InvalidRequest, match="refuses: Roles must alternate") as caught:
        render("{{ raise_exception('Roles must alternate') }}")
    assert caught.value.param == "messages"


# --- templates that mean no good -----------------------------------------------------------------------------------

GROW = "{% set ns = namespace(x='aa') %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}{{ ns.x }}"
NEST = "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = EXPRESSION %}{% endfor %}{{ ns.x }}"
LONG = "{% set a = 'a' * 4000000 %}{% for i in range(50000) %}"

HOSTILE = {
    "classes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.items() }}",
    "class of a global": "{{ namespace.__init__.__globals__ }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "loop internals": "{% for i in [1] %}{{ loop._iterable.x }}{% endfor %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "extends": "{% extends 'x' %}",
    "format": "{{ '{0.__class__}'.format(1) }}",
    "format by item": "{{ '{0[a]}'.format({'a': 1}) }}",
    "format within a format": "{{ '{:{}}'.format(1, 1000000000) }}",
    "format of a long text often": "{{ ('{0}' * 100000).format('a' * 4000000) }}",
    "mapped format": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "format without values": "{{ '{} {}'.format(1) }}",
    "long format": "{{ '{:>1000000000}'.format(1) }}",
    "old long format": "{{ '%1000000000d' % 1 }}",
    "old format of a long text often": "{{ ('%s' * 40000) % (('a' * 4000000,) * 40000) }}",
    "old format of a long text by name": "{{ ('%(a)s' * 40000) % {'a': 'a' * 4000000} }}",
    "old format of a list": "{{ ('%s' * 40000) % (['a' * 4000000] * 40000) }}",
    "starred format": "{{ '%*d' % (1000000000, 1) }}",
    "huge range": "{% for i in range(1000000000) %}{% endfor %}",
    "nested loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in range(9999) %}"
    + "{% endfor %}" * 3,
    "filtered loop": "{% for i in range(40000) %}{% for j in range(40000) if false %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "loop in a call block": "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}"
    "{% for i in range(50000) %}{% for j in range(50000) %}{% endfor %}{% endfor %}{% endcall %}",
    "text times": "{{ 'a' * 10000000000 }}",
    "times text": "{{ 10000000000 * 'a' }}",
    "list times": "{{ [0] * 10000000000 }}",
    "power": "{{ 2 ** 100000000 }}",
    "big numbers": "{% set ns = namespace(x=2) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling by ~": GROW.replace("EXPRESSION", "ns.x ~ ns.x"),
    "doubling by +": GROW.replace("EXPRESSION", "ns.x + ns.x"),
    "doubling by replace": GROW.replace("EXPRESSION", "ns.x.replace('a', 'aa')"),
    "doubling by the replace filter": GROW.replace("EXPRESSION", "ns.x | replace('a', 'aa')"),
    "doubling by join": GROW.replace("EXPRESSION", "ns.x.join([ns.x, ns.x])"),
    "doubling by the join filter": GROW.replace("EXPRESSION", "[ns.x, ns.x] | join(ns.x)"),
    "doubling by a block": GROW.replace(
        "{% set ns.x", "{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x"
    ).replace("EXPRESSION", "y"),
    "doubling without a loop": "{% set x = 'aa' %}" + "{% set x = x ~ x %}" * 60,
    "lists of lists": NEST.replace("EXPRESSION", "[ns.x, ns.x]"),
    "tuples of tuples": NEST.replace("EXPRESSION", "(ns.x, ns.x)"),
    "mappings of mappings": NEST.replace("EXPRESSION", "{'a': ns.x, 'b': ns.x}"),
    "mappings by a call": NEST.replace("EXPRESSION", "dict(a=ns.x, b=ns.x)"),
    "lists by +": NEST.replace("EXPRESSION", "ns.x + ns.x"),
    "objects in lists": NEST.replace("EXPRESSION", "[namespace(x=ns.x), namespace(x=ns.x)]"),
    "one text often": "{% set a = ['a' * 4000000] * 50000 %}{{ a }}",
    "one text often in JSON": "{% set a = ['a' * 4000000] * 50000 %}{{ a | tojson }}",
    "indented JSON": "{{ [1] | tojson(indent=1000000000) }}",
    "indented text": "{{ 'a\nb' | indent(10000000000) }}",
    "rounding": "{{ 1.5 | round(1000000000, 'ceil') }}",
    "center": "{{ 'x' | center(10000000000) }}",
    "ljust": "{{ 'x'.ljust(10000000000) }}",
    "zfill": "{{ '1'.zfill(10000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "long output": "{% for i in range(50000) %}" + "x" * 100_000 + "{% endfor %}",
    "long hidden output": "{% set y %}{% for i in range(50000) %}" + "x" * 100_000 + "{% endfor %}{% endset %}",
    "comparing": LONG + "{% if a == a ~ 'b' or a < a ~ 'b' %}{% endif %}{% endfor %}",
    "slicing": LONG + "{% set b = a[1:] %}{% endfor %}",
    "searching": LONG + "{% if 'b' in a %}{% endif %}{% endfor %}",
    "testing": LONG + "{% if a is upper %}{% endif %}{% endfor %}",
    "splitting": "{{ ('a' * 4000000).split('a') | length }}",
    "endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "endless block": "{% block a %}{{ self.a() }}{% endblock %}",
    "long date": "{{ strftime_now('%Y' * 1000) }}",
    "division by zero": "{{ 1 / 0 }}",
    "unknown function": "{{ lipsum() }}",
    "broken off": "{% for",
    "too long": "x" * 300_000,
    "deep parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "deep blocks": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "long chain": "{{ " + "1 + " * 5000 + "1 }}",
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_ends_with_an_error(name):
    with pytest.raises(InvalidRequest, match="--chat-template FILE"):
        render(HOSTILE[name])


HOARDS = {
    "texts": "'\U0001f600' * 4000000",
    "formatted texts": "'{0}{0}'.format('\U0001f600' * 2000000)",
    "replaced texts": "('a' * 1000).replace('a', '\U0001f600' * 4000)",
    "joined texts": "('\U0001f600' * 4000).join(['a'] * 1000)",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HOARDS)
def test_a_template_that_keeps_all_that_it_makes_takes_bounded_memory(name):
    kept = "".join(f"{{% set a{number} = {HOARDS[name]} %}}" for number in range(600))
    template = ChatTemplate(kept + "{{ a0 }}", tokenizer())
    template.check()
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest, match="--chat-template FILE"):
            template.render(user("hi"))
        assert tracemalloc.get_traced_memory()[1] < 256 << 20
    finally:
        tracemalloc.stop()


def test_a_template_gets_nothing_but_its_variables():
    assert render("{{ ''['__class__'] }}{{ environment }}{{ self._TemplateReference__context }}{{ cycler }}") == ""


def test_a_long_conversation_stays_within_the_bounds():
    text = render(CHATML, user(*["word " * 100] * 2000))
    assert text.count("<|im_start|>") == 2001


def test_a_template_that_does_not_compile_is_named_when_checked():
    with pytest.raises(UnsupportedModel, match=r"line 2: .*--chat-template FILE"):
        ChatTemplate("\n{% for %}", tokenizer()).check()
    ChatTemplate(CHATML, tokenizer()).check()


# --- where templates come from -----------------------------------------------------------------------------------


def test_a_given_template_wins_over_the_models_own():
    words = tokenizer(chat_template="own")
    assert chat_template(words).render([]) == "own"
    assert chat_template(words, "given").render([]) == "given"


def test_without_any_template_a_chat_is_refused_with_what_to_do():
    assert chat_template(tokenizer()) is None
    with pytest.raises(InvalidRequest, match=r"--chat-template FILE.*/v1/completions"):
        required(None)
    template = ChatTemplate("", tokenizer())
    assert required(template) is template
