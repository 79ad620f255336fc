"""Several conversations at once through one model, which computes them in the same steps.

Run it with .venv/bin/python examples/example_async.py
"""

from __future__ import annotations

import asyncio

from hyperlane import AutoDistributedModel
from hyperlane.sdk import Answer

QUESTIONS = ("What is a comet?", "Name three rivers.", "What does a compiler do?", "Why do cats purr?")


async def ask_all(model: AutoDistributedModel) -> list[Answer]:
    chats = ([{"role": "user", "content": question}] for question in QUESTIONS)
    return await asyncio.gather(*(model.achat(chat, max_tokens=60, temperature=0.0) for chat in chats))


def main() -> None:
    with AutoDistributedModel.from_pretrained("smollm2-135m", local_workers=2, slots=len(QUESTIONS)) as model:
        answers = asyncio.run(ask_all(model))
    for question, answer in zip(QUESTIONS, answers, strict=True):
        print(
            f"› {question}\n{answer}\n  ({answer.usage.completion_tokens} tokens, {answer.tokens_per_s:.1f} tokens/s)\n"
        )


if __name__ == "__main__":
    main()
