"""The network of the ArcFace family: a residual net over aligned 112 px faces (pure torch; nothing is read here).

Names of its parameters are those of the published weights (insightface's arcface_torch).
"""

from torch import Tensor, nn

SIDE = 112
"""Pixels of an aligned face's side."""
_WIDTHS = (64, 128, 256, 512)
DIMENSION = 512


class _Block(nn.Module):
    """Normalisation first, two 3x3 convolutions, the second one strided; a strided shortcut is projected."""

    def __init__(self, width_in: int, width_out: int, *, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width_in)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width_out)
        self.prelu = nn.PReLU(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width_out)
        self.downsample = None
        if stride != 1 or width_in != width_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width_out, 1, stride, bias=False), nn.BatchNorm2d(width_out)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        inner = self.prelu(self.bn2(self.conv1(self.bn1(x_BCHW))))
        shortcut = x_BCHW if self.downsample is None else self.downsample(x_BCHW)
        return self.bn3(self.conv2(inner)) + shortcut


class IResNet(nn.Module):
    """Aligned faces [B, 3, 112, 112] in [-1, 1] to embeddings [B, 512], not normalised.

    Args:
        depths: residual blocks of the four stages; (3, 4, 14, 3) is r50, (3, 13, 30, 3) is r100.
    """

    def __init__(self, *, depths: tuple[int, ...]) -> None:
        super().__init__()
        assert len(depths) == len(_WIDTHS)
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        self.prelu = nn.PReLU(_WIDTHS[0])
        before = _WIDTHS[0]
        for stage, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True), start=1):
            blocks = [_Block(before if k == 0 else width, width, stride=2 if k == 0 else 1) for k in range(depth)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            before = width
        self.bn2 = nn.BatchNorm2d(before)
        self.fc = nn.Linear(before * (SIDE // 16) ** 2, DIMENSION)
        self.features = nn.BatchNorm1d(DIMENSION)

    def forward(self, faces_B3HW: Tensor) -> Tensor:
        """Embeddings [B, 512]."""
        assert faces_B3HW.shape[1:] == (3, SIDE, SIDE), faces_B3HW.shape
        x = self.prelu(self.bn1(self.conv1(faces_B3HW)))
        for stage in range(1, len(_WIDTHS) + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(self.bn2(x).flatten(1)))
