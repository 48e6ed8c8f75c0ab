"""Images and videos out of arrays, as files that MLflow's UI shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["save_image", "save_video"]

_LONGEST_FRAMES = 600  # of a video; of a longer one, every n-th frame is kept


def save_image(image: Any, dataformats: str, path: Path) -> None:
    """Write an image as a PNG file.

    Args:
        image: An array or tensor; floats are taken as 0.0 to 1.0.
        dataformats: The letters H, W and C in the order of its axes, with N for several images, which are put next to
            each other.
        path: The file.

    Raises:
        ValueError: The image does not fit `dataformats`.
    """
    from PIL import Image as Pictures

    content, axes = _as_array(image), dataformats.upper()
    if content.ndim != len(axes) or set(axes) - set("NHWC"):
        raise ValueError(f"an image with dataformats={dataformats!r} has the shape {content.shape}")
    for name in "NC":
        if name not in axes:
            content, axes = content[..., np.newaxis], axes + name
    content = content.transpose([axes.index(name) for name in "HNWC"])
    height, count, width, channels = content.shape
    Pictures.fromarray(_pixels(content.reshape(height, count * width, channels))).save(path, format="PNG")


def save_video(video: Any, fps: float, path: Path) -> None:
    """Write a video as an animated GIF, which every browser plays; it needs no further package.

    Args:
        video: Frames of shape (videos, time, channels, height, width), as TensorBoard takes them; several videos are
            put next to each other.
        fps: Frames per second.
        path: The file.

    Raises:
        ValueError: The frames have another shape.
    """
    from PIL import Image as Pictures

    frames = _as_array(video)
    if frames.ndim != 5 or not frames.size:
        raise ValueError(f"expected video frames of shape (videos, time, channels, height, width), got {frames.shape}")
    stride = -(-frames.shape[1] // _LONGEST_FRAMES)
    frames = frames[:, ::stride].transpose(1, 3, 0, 4, 2)
    time, height, count, width, channels = frames.shape
    pictures = [Pictures.fromarray(frame) for frame in _pixels(frames.reshape(time, height, count * width, channels))]
    milliseconds = max(round(1000 * stride / float(fps)), 20)  # browsers play shorter ones slowly
    pictures[0].save(
        path, format="GIF", save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0, optimize=False
    )


def _as_array(content: Any) -> NDArray[Any]:
    if hasattr(content, "detach"):
        content = content.detach().cpu().numpy()
    return np.asarray(content)


def _pixels(content: NDArray[Any]) -> NDArray[np.uint8]:
    """Return pixels of 0 to 255; floats are taken as 0.0 to 1.0, as TensorBoard takes them. One channel is dropped."""
    if np.issubdtype(content.dtype, np.floating):
        content = np.nan_to_num(content) * 255.0
    pixels: NDArray[np.uint8] = np.clip(content, 0, 255).astype(np.uint8)
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :4]
