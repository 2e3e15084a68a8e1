"""The vector of a new scan or region, made as the rows of a feature store were, to search the store with."""

from pathlib import Path

import numpy as np
import torch

from voxelfm_hf.features import set_up_processor
from voxelfm_hf.features.tiles import encode
from voxelfm_hf.hub import is_local_elsewhere, load, resolve_model, weight_hash
from voxelfm_hf.scan_list import Region
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import Volume
from voxelfm_hf.volumes.errors import ModelError, ScanError, StoreError


def query_vector(
    store: FeatureStore, volume: Volume, *, region: Region | None = None, model: str | Path | None = None
) -> np.ndarray:
    """The CLS vector (C,) of a scan with the model and settings of a store.

    Args:
        store: The store to be searched.
        volume: The scan.
        region: A cube of it, where the rows of the store are regions.
        model: Folder or Hub repository of the model; by default the one that the store names.

    Raises:
        ModelError: the model cannot be found, or has other weights than the store's.
        ScanError: the scan cannot be prepared, or a region is given or lacking where the store has none or some.
    """
    run = store.run
    size = (run.get("processor") or {}).get("region_size")
    if (region is None) != (size is None):
        need = "regions: say which with --point" if size else "whole scans: leave the region out"
        raise ScanError(f"{store.folder} holds {need}")
    base = str(model or run.get("model"))
    if model is None and is_local_elsewhere(base):
        raise ModelError(f"{store.folder} was made with a local model named {base}: say where that model is (--model)")
    folder = resolve_model(base)
    if weight_hash(folder) != run.get("weight_hash"):
        raise ModelError(f"{base} has other weights than the model of {store.folder}: name that model")
    network, processor = load(folder, dtype=getattr(torch, run.get("dtype") or "float32"))
    size, tile = set_up_processor(processor, run.get("processor"))
    try:
        if region is None:
            voxels = processor(volume)["pixel_values"][0]
        else:
            voxels, _ = processor.prepare_region(volume, region.centre_lps, region.edge_mm, size)
    except ValueError as error:
        raise ScanError(f"{volume.source}: {error}") from None
    return encode(network, voxels[None], tile=None if region else tile)[0][0].cpu().numpy()


def stored_vector(store: FeatureStore, identifier: str) -> np.ndarray:
    """The CLS vector (C,) of a row; StoreError for an id that the store does not have."""
    try:
        return store.cls[store.ids.index(identifier)]
    except ValueError:
        raise StoreError(f"{store.folder} has no scan {identifier}: its ids are like {store.ids[0]}") from None
