"""A folder of images, one folder for each class, as ``torchvision.datasets.ImageFolder`` reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fedsim.data.columns import Samples
from fedsim.data.sources import user_folder
from fedsim.data.splits import in_order
from fedsim.errors import DataError

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
"""Modes of PIL of 8 bits a channel."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")


def read_images(folder: Path, size: Sequence[int] | None = None) -> Samples:
    """Images uint8 ``[N, H, W, C]`` or, if all are grey, ``[N, H, W]``; classes are folders, in natural order.

    Args:
        folder: folder of the classes.
        size: height and width to which images are resized, bilinearly; by default they are of one size.

    Raises:
        DataError: there is no such folder or no image in it, an image cannot be read or has more than 8 bits a channel,
            or sizes differ.
    """
    from PIL import Image, UnidentifiedImageError  # comes with Matplotlib

    folder = user_folder(folder, "a folder with a folder of images for each class")
    classes = in_order(child.name for child in folder.iterdir() if child.is_dir())
    files = {
        name: sorted(file for file in (folder / name).rglob("*") if file.suffix.lower() in ENDINGS) for name in classes
    }
    classes = [name for name in classes if files[name]]
    if not classes:
        raise DataError(f"{folder} has no folder with images ({', '.join(ENDINGS)}); expected one for each class")
    pictures, labels = [], []
    for label, name in enumerate(classes):
        for file in files[name]:
            try:
                with Image.open(file) as picture:
                    if picture.mode not in MODES:          # conversion would clip it
                        raise DataError(
                            f"{file} has the mode {picture.mode}, of more than 8 bits a channel; expected 8: convert it"
                        )
                    eight = picture.copy() if picture.mode == "L" else picture.convert("RGB")
                    eight = eight if size is None else eight.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                    pictures.append(np.asarray(eight))
            except (OSError, ValueError, UnidentifiedImageError) as error:
                raise DataError(f"{file} is no readable image ({error})") from None
            labels.append(label)
    if any(picture.ndim == 3 for picture in pictures):
        pictures = [p if p.ndim == 3 else np.repeat(p[..., None], 3, 2) for p in pictures]
    sizes = {picture.shape for picture in pictures}
    if len(sizes) > 1:
        some = ", ".join(f"{w} x {h}" for h, w, *_ in sorted(sizes)[:3])
        raise DataError(f"{folder}: images of {some} pixels; expected one size: resize them (data.size [H,W])")
    return Samples(torch.from_numpy(np.stack(pictures)), np.array(labels), labels=tuple(classes))
