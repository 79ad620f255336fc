import pytest

from hyperlane.errors import UnknownModel, UnsupportedModel
from hyperlane.models.hub_choice import HubFile, choose, quantisation


def files(*paths: str) -> list[HubFile]:
    return [HubFile(path, 10**9, "0" * 64) for path in paths]


LADDER = files("README.md", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q8_0.gguf", "m-IQ2_XXS.gguf", "mmproj-F16.gguf")
CHECKPOINT = files(
    "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "tokenizer.json"
) + files("model.safetensors.index.json", "pytorch_model.bin", "onnx/model.onnx", "consolidated.safetensors")


def chosen(listing: list[HubFile], pick: str = "") -> list[str]:
    return [file.path for file in choose(listing, pick, "hf.co/o/r").files]


@pytest.mark.parametrize(
    ("path", "tells"),
    [
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "Q4_1"),
        ("gemma-3-270m-q4_k_m.gguf", "Q4_K_M"),
        ("model-IQ4_XS.gguf", "IQ4_XS"),
        ("model-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("model-bf16.gguf", "BF16"),
        ("model-Q4_0_4_8.gguf", "Q4_0_4_8"),
        ("gpt-MXFP4.gguf", "MXFP4"),
        ("Q8_0/model-00001-of-00002.gguf", "Q8_0"),
        ("Qwen2.5-7B.gguf", ""),
        ("model.gguf", ""),
    ],
)
def test_a_files_name_tells_its_quantisation(path, tells):
    assert quantisation(path) == tells


@pytest.mark.parametrize("pick", ["Q4_K_M", "q4_k_m", "m-Q4_K_M.gguf", "M-q4_k_m.GGUF"])
def test_a_quantisation_or_a_files_name_picks_one(pick):
    assert chosen(LADDER, pick) == ["m-Q4_K_M.gguf"]


def test_a_file_in_a_folder_is_picked_by_its_path_or_its_name():
    listing = files("a/m-Q4_0.gguf", "b/m-Q8_0.gguf")
    assert chosen(listing, "a/m-Q4_0.gguf") == ["a/m-Q4_0.gguf"]
    assert chosen(listing, "m-Q8_0.gguf") == ["b/m-Q8_0.gguf"]


def test_the_only_model_needs_no_pick():
    assert chosen(files("README.md", "m.gguf", "mmproj-m.gguf", "m.imatrix.gguf")) == ["m.gguf"]


def test_several_models_without_a_pick_are_listed_with_their_sizes():
    with pytest.raises(UnknownModel) as refused:
        choose(LADDER, "", "hf.co/o/r")
    assert "hf.co/o/r holds several models" in str(refused.value)
    for tag in (":Q4_K_M (1.0 GB)", ":Q4_K_S", ":Q8_0", ":IQ2_XXS"):
        assert tag in str(refused.value)
    assert "mmproj" not in str(refused.value)


def test_a_quantisation_that_two_files_have_is_not_guessed_and_they_are_listed_by_name():
    listing = files("a-Q4_K_M.gguf", "b-Q4_K_M.gguf")
    with pytest.raises(UnknownModel, match=r"several models for 'Q4_K_M'.*:a-Q4_K_M\.gguf .*:b-Q4_K_M\.gguf"):
        choose(listing, "Q4_K_M", "hf.co/o/r")


def test_a_prefix_of_quantisations_picks_none():
    with pytest.raises(UnknownModel, match=r"has no 'Q4_K'.*:Q4_K_M"):
        choose(LADDER, "Q4_K", "hf.co/o/r")


def test_a_variant_of_a_quantisation_stands_in_for_it_only_when_alone():
    assert chosen(files("m-UD-Q4_K_M.gguf", "m-Q8_0.gguf"), "Q4_K_M") == ["m-UD-Q4_K_M.gguf"]
    assert chosen(files("m-UD-Q4_K_M.gguf", "m-Q4_K_M.gguf"), "Q4_K_M") == ["m-Q4_K_M.gguf"]


def test_a_model_in_parts_is_refused_by_name_with_what_to_do():
    listing = files("Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf", "m-Q4_0.gguf")
    with pytest.raises(UnsupportedModel, match=r"m-Q8_0-00001-of-00002\.gguf is one of .*llama-gguf-split --merge"):
        choose(listing, "Q8_0", "hf.co/o/r")
    with pytest.raises(UnknownModel, match=r"has no 'Q2_K'.*:Q8_0 \(2\.0 GB\)"):
        choose(listing, "Q2_K", "hf.co/o/r")


def test_a_repository_of_safetensors_is_a_checkpoint_of_the_files_that_are_read():
    choice = choose(CHECKPOINT, "", "hf.co/o/r")
    assert choice.is_checkpoint
    assert {file.path for file in choice.files} == {
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    }


def test_beside_gguf_files_a_checkpoint_is_asked_for_by_name():
    both = [*LADDER, *CHECKPOINT]
    assert choose(both, "safetensors", "hf.co/o/r").is_checkpoint
    assert chosen(both, "Q8_0") == ["m-Q8_0.gguf"]
    with pytest.raises(UnknownModel, match=":safetensors"):
        choose(both, "nothing", "hf.co/o/r")


def test_a_repository_without_models_says_so():
    with pytest.raises(UnknownModel, match="neither a GGUF file nor a checkpoint"):
        choose(files("README.md", "pytorch_model.bin"), "", "hf.co/o/r")
    with pytest.raises(UnknownModel, match="no GGUF file at all"):
        choose(files("README.md"), "Q4_0", "hf.co/o/r")
