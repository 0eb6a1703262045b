"""Random views of images, for a whole batch at once on its device, with parameters of its own for every image.

`Augmentation.draw` turns (epoch, image, view) into a table of parameters on the CPU, for instance
in a data worker; `Augmentation.apply` turns float images in [0, 1] and that table into views in [0,
1] wherever the images are. The parameters are a pure function of seed, epoch, image and view, so
that an image looks the same in any batch, on any number of processes and after a restart. The
contrastive objective calls both.

Crop, flip, rotation, jitter, grey, blur, solarisation and inversion follow each other in this
order. A crop is never larger than the image and the view has the image's size, so pixels are only
ever magnified and nothing aliases.

Source: Chen et al. 2020 (SimCLR), appendix A. Crop, rotation and jitter are Pillow's (and
torchvision's ColorJitter's) without rounding to whole pixels and 8 bits; blur and solarisation are
kornia's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import solarize
from numpy.typing import NDArray
from torch import Tensor

from bert_pretrain.data.random import Purpose, uniform
from bert_pretrain.errors import InputError
from bert_pretrain.images.augmentation.colours import blur, jitter
from bert_pretrain.images.augmentation.geometry import crop_and_flip, rotate
from bert_pretrain.images.augmentation.parameters import NUM_DRAWS, Parameter, draw_parameters
from bert_pretrain.images.augmentation.rules import PRESETS, AugmentationRule, Preset


class Augmentation:
    """Draws and applies random views of square images."""

    def __init__(
        self,
        rule: AugmentationRule | Preset,
        *,
        num_channels: Literal[1, 3, 4],
        image_size: int,
        seed: int,
    ) -> None:
        """Fix what is drawn.

        Args:
            rule: how often and how strongly images change, or the name of one of `PRESETS`.
            num_channels: 1 grey, 3 red-green-blue, 4 with alpha. Alpha is cropped, flipped and
                rotated with the colours and nothing else; on one channel the jitter is brightness
                and contrast.
            image_size: height and width, pixels.
            seed: of the run.

        Raises:
            InputError: `rule` names no preset.
        """
        assert num_channels in (1, 3, 4)
        if isinstance(rule, str):
            if rule not in PRESETS:
                raise InputError(
                    f"augmentation is {rule!r} but must be one of {', '.join(PRESETS)}",
                    advice="change `augmentation`",
                )
            rule = PRESETS[rule]
        if num_channels == 1:
            rule = replace(rule, saturation=0.0, hue=0.0, grayscale_prob=0.0)
        self.rule = rule
        self.num_channels = num_channels
        self.image_size = image_size
        self.seed = seed

    def draw(self, epoch: int | NDArray[np.int64], rows: NDArray[np.int64], view: int) -> Tensor:
        """Draw the parameters of one view of every image.

        Args:
            epoch: pass over the data, one number or int64 (B,), since a batch may reach into the
                next epoch.
            rows: int64 (B,), which images, by their number in the data set.
            view: which view of them, 0 or 1.

        Returns:
            float32 (B, P), columns as named by `Parameter`, on the CPU.
        """
        epochs = np.reshape(epoch, (-1, 1))
        draws = uniform(
            self.seed, Purpose.AUGMENTATION, epochs, rows[:, None], view, np.arange(NUM_DRAWS)
        )
        return torch.from_numpy(draw_parameters(self.rule, draws).astype(np.float32))

    @torch.no_grad()
    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return the views that the parameters describe.

        Control flow depends on the rule alone, never on the values drawn: nothing waits for the
        device, and the operations of a step are the same at every step.

        Args:
            images: float32 (B, C, H, W) in [0, 1]; not changed.
            parameters: float32 (B, P) from `draw`, on the device of the images.

        Returns:
            float32 (B, C, H, W) in [0, 1].
        """
        assert images.shape[1:] == (self.num_channels, self.image_size, self.image_size)
        assert parameters.shape == (len(images), len(Parameter))
        # Under autocast a product and a convolution would round pixels to the 8 bits of bfloat16.
        with torch.autocast(images.device.type, enabled=False):
            return self._apply(images, parameters)

    def _apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        rule = self.rule
        if rule.crops_or_flips:
            images = crop_and_flip(images, parameters)
        if rule.rotation_prob > 0:
            images = rotate(images, parameters[:, Parameter.ANGLE])
        colours = images[:, :3]
        if rule.jitter_prob > 0:
            colours = jitter(colours, parameters)
        if rule.grayscale_prob > 0:
            colours = colours.lerp(
                rgb_to_grayscale(colours), _column(parameters, Parameter.GRAYSCALE)
            )
        radius = self.image_size // 20
        if rule.blur_prob > 0 and radius > 0:
            colours = blur(colours, parameters[:, Parameter.BLUR_SIGMA], radius=radius)
        if rule.solarize_prob > 0:
            colours = solarize(colours, parameters[:, Parameter.SOLARIZE_THRESHOLD])
        if rule.inversion_prob > 0:
            colours = (
                _column(parameters, Parameter.INVERSION) - colours
            ).abs_()  # |1 - x| or |0 - x|
        return colours if self.num_channels != 4 else torch.cat([colours, images[:, 3:]], dim=1)


def _column(parameters: Tensor, column: Parameter) -> Tensor:
    return parameters[:, column, None, None, None]
