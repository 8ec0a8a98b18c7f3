"""The mini world's face embedder: a small ResNet over square face crops (pure torch; nothing is read here)."""

import torch.nn.functional as functional
from torch import Tensor, nn

FACE_SIZE = 64
"""Pixels of a face crop's side."""


class _Block(nn.Module):
    """Pre-activation free residual block of two 3x3 convolutions; the shortcut is pooled and projected when needed."""

    def __init__(self, width_in: int, width_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        self.act1, self.act2 = nn.PReLU(width_out), nn.PReLU(width_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or width_in != width_out:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride), nn.Conv2d(width_in, width_out, 1, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.act1(self.norm1(self.conv1(x_BCHW)))
        return self.act2(self.norm2(self.conv2(inner)) + self.shortcut(x_BCHW))


class FaceResNet(nn.Module):
    """Face crops [B, 3, 64, 64] in [-1, 1] to unit embeddings [B, dimension].

    Args:
        widths: channels of the stages; the stem halves the picture once and every stage halves it again.
        depths: residual blocks of each stage.
        dimension: length of the embedding.
    """

    def __init__(self, *, widths: tuple[int, ...], depths: tuple[int, ...], dimension: int) -> None:
        super().__init__()
        assert len(widths) == len(depths)
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0] // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0] // 2), nn.PReLU(widths[0] // 2)
        )
        blocks: list[nn.Module] = []
        width = widths[0] // 2
        for stage_width, depth in zip(widths, depths, strict=True):
            for index in range(depth):
                blocks.append(_Block(width, stage_width, stride=2 if index == 0 else 1))
                width = stage_width
        self.blocks = nn.Sequential(*blocks)
        side = FACE_SIZE // 2 ** (1 + len(widths))
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(width * side * side, dimension, bias=False), nn.BatchNorm1d(dimension, affine=False)
        )

    def forward(self, crops_BCHW: Tensor) -> Tensor:
        """Unit-norm embeddings [B, dimension] of crops [B, 3, 64, 64] in [-1, 1]."""
        return functional.normalize(self.features(crops_BCHW), dim=-1)

    def features(self, crops_BCHW: Tensor) -> Tensor:
        """Embeddings before normalisation [B, dimension]."""
        assert crops_BCHW.shape[1:] == (3, FACE_SIZE, FACE_SIZE), crops_BCHW.shape
        return self.head(self.blocks(self.stem(crops_BCHW)))
