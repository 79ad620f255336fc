"""Fields that would change the answer and that we do not support: refused with 400 unless neutral, never ignored.

Fields that appear neither here nor in the schema are ignored, whatever they are.
"""

from __future__ import annotations

from collections.abc import Mapping

from hyperlane.errors import InvalidRequest

_TEXT_FORMAT = {"type": "text"}

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    # OpenAI's own
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": (_TEXT_FORMAT,),
    "modalities": (["text"], []),
    "audio": (),
    "web_search_options": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "moderation": (),
    "suffix": ("",),
    "echo": (False,),
    # what other servers understand
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "structured_outputs": (),
    "grammar": ("",),
    "json_schema": (),
    "min_tokens": (0,),
    "stop_token_ids": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "prompt_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "include_stop_str_in_output": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template": (),
    "chat_template_kwargs": ({},),
    "documents": ([],),
    "mirostat": (0,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "dynatemp_range": (0,),
    "repeat_penalty": (1,),
}

_INSTEAD: Mapping[str, str] = {
    "repeat_penalty": "use 'repetition_penalty'",
    "echo": "the prompt is not sent back",
    "response_format": "only {'type': 'text'} is",
    "modalities": "only ['text'] is",
}


def refuse_unsupported(body: Mapping[str, object]) -> None:
    """Check a request's fields against the table; null counts as absent.

    Raises:
        InvalidRequest: with `param` and the code `unsupported_parameter`.

    """
    for name, value in body.items():
        if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
            hint = f"; {_INSTEAD[name]}" if name in _INSTEAD else ""
            message = f"'{name}' is not supported, and leaving it out silently would change the answer{hint}."
            raise InvalidRequest(message, param=name, code="unsupported_parameter")
