"""Loads a release in a process of its own and writes what it computes; run as a script, never imported.

    python -I clean_load.py FOLDER AUTO_CLASS OUT with|without ROOT

ROOT is where voxelfm_hf lies. "without" blocks the import of voxelfm_hf, as on a machine that does not have it: the
code in the folder is used.
"""

import sys
from pathlib import Path


def main() -> None:
    folder, auto_class, out, package, root = sys.argv[1:]
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
    trust = package == "without"
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=trust).float().eval()
    config = model.config
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if config.model_type == "voxelfm_probe":
            cls = torch.randn(2, config.feature_size, generator=generator)
            patches = torch.randn(2, 3, 3, 3, config.feature_size, generator=generator)
            size = {"size": (6, 6, 6)} if config.task == "segmentation" else {}
            outputs = {"logits": model(cls=cls, patches=patches, **size).logits}
        else:
            edge = 2 * config.patch_size
            found = model(torch.randn(1, 1, edge, edge, edge, generator=generator))
            outputs = {"logits": found.logits} if "logits" in found else {"tokens": found.last_hidden_state}
        if (Path(folder) / "preprocessor_config.json").is_file():
            processor = transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=trust)
            volume = torch.randint(-900, 900, (40, 48, 56), generator=generator).numpy().astype("int16")
            outputs["pixel_values"] = processor(volume, spacing=(2.0, 1.5, 1.5))["pixel_values"]
    save_file({name: value.float().contiguous() for name, value in outputs.items()}, out)


if __name__ == "__main__":
    main()
