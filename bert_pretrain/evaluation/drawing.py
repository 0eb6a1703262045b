"""What all pictures of images share: a figure with a title, an image's panel, a file that is whole.

Images are uint8, or float that is clipped to [0, 1], of shape (H, W, C) with 1 channel (gray), 3
(RGB) or 4 (RGBA). A picture's bytes depend on what is drawn alone.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bert_pretrain.data.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sizes in points at which a picture of 9 inches is read where a report shows it.
TITLE_SIZE, TEXT_SIZE, NOTE_SIZE = 12, 10, 8.5
PANEL_INCHES = 0.95
RIGHT, WRONG = "#1a7f37", "#cf222e"
_DOTS_PER_INCH = 120
_CHARACTERS_PER_INCH = 117  # of one point; the usual font's letters are 0.6 as wide as high


def new_figure(
    width_inches: float, height_inches: float, *, title: str, caption: str = ""
) -> Figure:
    """Return a figure that says above what is seen and, smaller, below how to read it.

    Both are broken into lines that fit; they take their room from the height.
    """
    # Matplotlib takes most of a second to import. A figure without pyplot leaves the user's alone.
    from matplotlib.figure import Figure

    above, below = (
        _lines(text, width_inches, size)
        for text, size in ((title, TITLE_SIZE), (caption, NOTE_SIZE))
    )
    height_inches += 0.25 * len(above) + 0.18 * len(below)
    figure = Figure(figsize=(width_inches, height_inches), dpi=_DOTS_PER_INCH, layout="constrained")
    figure.suptitle("\n".join(above), fontsize=TITLE_SIZE)
    if caption:
        figure.supxlabel("\n".join(below), fontsize=NOTE_SIZE, color="0.3")
    return figure


def draw_image(panel: Axes, image: NDArray[Any], *, frame: str | None = None) -> None:
    """Draw an image (H, W, C) as it is, each pixel a square, in a frame of a colour if given."""
    is_bytes = image.dtype == np.uint8
    pixels = image if is_bytes else (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
    assert pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4), pixels.shape
    panel.set(xticks=[], yticks=[])
    panel.patch.set_visible(False)
    panel.spines[:].set(visible=frame is not None, color=frame, linewidth=2.5)
    if pixels.shape[2] == 1:
        panel.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    else:
        panel.imshow(pixels, interpolation="nearest")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the software's name the bytes depend on the picture alone.
    with atomic_file(path) as aside:
        figure.savefig(aside, format="png", metadata={"Software": None})


def shortened(name: str, *, longest: int = 16) -> str:
    """Return a class's name cut to fit below an image."""
    return name if len(name) <= longest else name[: longest - 1] + "\N{HORIZONTAL ELLIPSIS}"


def _lines(text: str, width_inches: float, size: float) -> list[str]:
    return textwrap.wrap(text, max(20, int(width_inches * _CHARACTERS_PER_INCH / size)))
