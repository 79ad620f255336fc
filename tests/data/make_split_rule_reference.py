"""Writes split_rule_reference.json: what llama.cpp makes of texts under each split rule of byte-level BPE.

The vocabulary is trained on the texts themselves without any splitting, so that every cut shows in the tokens, and
has one word that no merge makes, for the rules that take whole words. Run with the path of llama.cpp's
`llama-tokenize`; the file names the one that was used.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from hyperlane.models.tokenizer_pre import SPLIT_RULES

SOURCE = "llama-tokenize of llama.cpp as vendored in llama-cpp-python 0.3.36, vocabulary trained on the texts"
WHOLE_WORD = "fizzbuzz"
TEXTS = [
    "Hello, world! I'LL can'T DON'T we'Re they've",
    "foo(bar)[3]=`x` ~~ ^2 $100 <a> a|b",
    "a/b//c\n\n/d  \n  e",
    "HelloWORLD iPhoneXS McDonald ABCdef",
    "12345678 1234 123 12",
    "日本語カタカナ漢字ひらがな mixed 中文，文本。",
    "  \n \n\n  x",
    "hello\r\n\r\n  world\t\tx ",
    "१२३४ ٣٤٥ ½ ²",
    "!important #tag @user",
    "\u00a0nbsp\u3000ideographic",
    "e\u0301a\u0308 हिन्दी",
    "😀😃!?...",
    "'''quotes''' \"\"",
    "ÀÉÎ ÀÉÎõü straße STRASSE",
    "x_y__z ___",
    "price: $3.50, 50%!",
    "\n a\n",
    "a  b   c    d",
    "end!\n\nnext;\r\n  }\n",
    WHOLE_WORD,
]


def trained() -> tuple[list[str], list[str]]:
    """Tokens and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=4000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([text for text in TEXTS if text != WHOLE_WORD], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [" ".join(merge) for merge in model["merges"]]
    return [*tokens, WHOLE_WORD], merges


def write_vocabulary(path: Path, pre: str, tokens: list[str], merges: list[str]) -> None:
    """A model file without tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "embedding_length", "context_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 64)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids(program: str, vocabulary: Path, text: str) -> list[int]:
    """What llama.cpp makes of a text."""
    prompt = vocabulary.with_suffix(".txt")
    prompt.write_bytes(text.encode())
    flags = ["--ids", "--no-bos", "--no-parse-special", "--log-disable", "--no-escape"]
    command = [program, "-m", str(vocabulary), "-f", str(prompt), *flags]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    """Write the file beside this one."""
    tokens, merges = trained()
    one_name_each = {rule: name for name, rule in reversed(SPLIT_RULES.items())}.values()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = Path(folder) / "vocabulary.gguf"
        for pre in sorted(one_name_each):
            write_vocabulary(vocabulary, pre, tokens, merges)
            found[pre] = [ids(sys.argv[1], vocabulary, text) for text in TEXTS]
    content = {"source": SOURCE, "tokens": tokens, "merges": merges, "texts": TEXTS, "ids": found}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    text = re.sub(r"\[[\s\d,]+\]", lambda match: " ".join(match.group().split()), text)
    Path(__file__).with_name("split_rule_reference.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
