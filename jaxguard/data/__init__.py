"""Datasets and triggers from disk, as float32 images in [0, 1]; the only reader of data."""

from jaxguard.data.npz import load_images, load_trigger
from jaxguard.data.source import Source
from jaxguard.data.sources import SOURCES, load

__all__ = ["SOURCES", "Source", "load", "load_images", "load_trigger"]
