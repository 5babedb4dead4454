"""Data sets as tensors, cached as safetensors in ``$KDCORE_CACHE/data``."""

from kdcore.data.images import ImageData, fingerprint, load, stratified_subset

__all__ = ["ImageData", "fingerprint", "load", "stratified_subset"]
