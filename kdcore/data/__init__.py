"""Data sets, cached in ``$KDCORE_CACHE/data``: images as safetensors, tabular data (``tabular``) as CSV."""

from kdcore.data import images, tabular
from kdcore.data.images import ImageData, load, stratified_subset

__all__ = ["ImageData", "fingerprint", "load", "stratified_subset", "tabular"]


def fingerprint(name: str) -> str:
    """The pinned fingerprint of any data set; the data need not be here. Raises KdcoreError for an unknown name."""
    return tabular.fingerprint(name) if name in tabular.FINGERPRINTS else images.fingerprint(name)
