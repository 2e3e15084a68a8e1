"""Encoders, one file each: anything that turns a scan or a region into a CLS vector and perhaps a patch grid.

    make(setup, **options) -> Encoder

What an encoder makes lies in an ordinary feature store, so every task works on it unchanged. A new encoder is one new
file here, or a module of your own with the function `make`, named with its package: `my_package.my_encoder`.
"""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from voxelfm_hf.eval.encoders.base import Encoder, EncoderSetup
from voxelfm_hf.eval.named_modules import NamedModules
from voxelfm_hf.volumes.errors import RecipeError

_ENCODERS = NamedModules(__name__, "encoder", helpers=("base", "cubes", "texture", "peer"))
encoder_names = _ENCODERS.names


def make_encoder(kind: str, setup: EncoderSetup, options: Mapping[str, Any] | None = None) -> Encoder:
    """The encoder of a name.

    Args:
        kind: One of `encoder_names()`, or a module that can be imported and has `make`.
        setup: What all encoders are given.
        options: Its own options.

    Raises:
        RecipeError: no such encoder, or an option it does not have.
        ModelError: its weights or its package are missing.
    """
    if "." in kind:
        try:
            make = importlib.import_module(kind).make
        except (ImportError, AttributeError) as error:
            raise RecipeError(
                f"the encoder {kind} is no module with a function make that can be imported: {error}"
            ) from None
    else:
        make = _ENCODERS.load(kind).make
    known = [name for name in inspect.signature(make).parameters if name != "setup"]
    for name in options or {}:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise RecipeError(f"the encoder {kind} has no option {name}: {has}")
    return make(setup, **(options or {}))
