"""Loads a release in a process of its own and writes what it computes; run as a script, never imported.

    python -I clean_load.py FOLDER AUTO_CLASS OUT with|without ROOT BASES

ROOT is where voxelfm_hf lies, BASES (JSON) where the models lie that the folder names and does not hold. "without"
blocks the import of voxelfm_hf, as on a machine that does not have it: the code in the folder is used.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    folder, auto_class, out, package, root, named = sys.argv[1:]
    if package == "without":
        sys.modules["voxelfm_hf"] = None  # type: ignore[assignment]
    else:
        sys.path.append(root)
        import voxelfm_hf  # noqa: F401
    import torch
    import transformers
    from safetensors.torch import save_file

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    trust, bases = package == "without", json.loads(named)
    loader = getattr(transformers, auto_class)
    if "base_model_name_or_path" in bases:
        from peft import PeftModel

        base = loader.from_pretrained(bases["base_model_name_or_path"], trust_remote_code=trust)
        model = PeftModel.from_pretrained(base, folder).merge_and_unload()
    else:
        given = {"vision_model": "base_vision_model", "language_model": "base_text_model"}
        options = {option: bases[field] for option, field in given.items() if field in bases}
        model = loader.from_pretrained(folder, trust_remote_code=trust, **options)
    model = model.float().eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    volume = torch.randint(-900, 900, (40, 48, 56), generator=generator).numpy().astype("int16")
    with torch.no_grad():
        if config.model_type == "voxelfm_probe":
            cls = torch.randn(2, config.feature_size, generator=generator)
            patches = torch.randn(2, 3, 3, 3, config.feature_size, generator=generator)
            size = {"size": (6, 6, 6)} if config.family.is_map else {}
            outputs = {"logits": model(cls=cls, patches=patches, **size).logits}
        elif config.model_type == "voxelfm_report":
            processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=trust)
            outputs = {"logits": model(**processor(volume, spacing=(2.0, 1.5, 1.5))).logits}
        else:
            edge = 2 * config.patch_size
            found = model(torch.randn(1, 1, edge, edge, edge, generator=generator))
            outputs = {"logits": found.logits} if "logits" in found else {"tokens": found.last_hidden_state}
        if (Path(folder) / "preprocessor_config.json").is_file():
            images = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust)
            outputs["pixel_values"] = images(volume, spacing=(2.0, 1.5, 1.5))["pixel_values"]
    save_file({name: value.float().contiguous() for name, value in outputs.items()}, out)


if __name__ == "__main__":
    main()
