"""VoxelFM for Hugging Face: `import voxelfm_hf` registers the model, backbone, processor and pipeline with the Auto classes."""

import os as _os

# In a bare checkout modeling/, training/, eval/ and model_cards/ lie beside this folder; a wheel has them inside it.
_root = _os.path.dirname(_os.path.dirname(_os.path.abspath(__file__)))
if _os.path.isfile(_os.path.join(_root, "pyproject.toml")):
    __path__.append(_root)

__version__ = "0.1.0"
