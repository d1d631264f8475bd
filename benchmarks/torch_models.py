"""The networks that go through Torch-Pruning, written in plain PyTorch.

Layer by layer what keras.applications builds, and the residual networks for CIFAR-10 of
He et al. (2016) with both of their shortcuts.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs, outputs, size, stride=1, groups=1):
    padding = size // 2
    conv = nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class PaddedShortcut(nn.Module):
    """Every second pixel, and channels of zeros on both sides: no weights."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.before = (outputs - inputs) // 2
        self.after = outputs - inputs - self.before

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class Residual(nn.Module):
    """A residual block: `body` beside `shortcut`, then ReLU."""

    def __init__(self, body, shortcut):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """A block of MobileNetV2: expand, filter, project; added if the shape stays."""

    def __init__(self, inputs, outputs, stride, expansion):
        super().__init__()
        width = inputs * expansion
        expand = [conv_bn(inputs, width, 1), nn.ReLU6()] if expansion != 1 else []
        self.body = nn.Sequential(
            *expand,
            conv_bn(width, width, 3, stride, groups=width),
            nn.ReLU6(),
            conv_bn(width, outputs, 1),
        )
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.is_residual else self.body(x)


class Classifier(nn.Module):
    """Blocks, the mean over all positions, and one dense layer."""

    def __init__(self, blocks, width, classes):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.logits = nn.Linear(width, classes)

    def forward(self, x):
        return self.logits(self.blocks(x).mean((2, 3)))


def _bottleneck(inputs, width, stride):
    body = nn.Sequential(
        conv_bn(inputs, width, 1, stride),
        nn.ReLU(),
        conv_bn(width, width, 3),
        nn.ReLU(),
        conv_bn(width, 4 * width, 1),
    )
    changes = stride != 1 or inputs != 4 * width
    shortcut = conv_bn(inputs, 4 * width, 1, stride) if changes else nn.Identity()
    return Residual(body, shortcut)


def resnet50(classes=10):
    blocks = [conv_bn(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(_bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    return Classifier(blocks, inputs, classes)


def resnet56(shortcut, classes=10):
    """Returns ResNet-56; `shortcut` is "padded" (A) or "projected" (B)."""
    blocks, inputs = [conv_bn(3, 16, 3), nn.ReLU()], 16
    for width in (16, 32, 64):
        for _ in range(9):
            stride = 1 if width == inputs else 2
            body = nn.Sequential(
                conv_bn(inputs, width, 3, stride), nn.ReLU(), conv_bn(width, width, 3)
            )
            other = nn.Identity()
            if stride == 2:
                padded = shortcut == "padded"
                other = (
                    PaddedShortcut(inputs, width)
                    if padded
                    else conv_bn(inputs, width, 1, 2)
                )
            blocks.append(Residual(body, other))
            inputs = width
    return Classifier(blocks, inputs, classes)


def mobilenet_v2(classes=10):
    blocks, inputs = [conv_bn(3, 32, 3, 2), nn.ReLU6()], 32
    for expansion, width, count, stride in (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ):
        for i in range(count):
            first = stride if i == 0 else 1
            blocks.append(InvertedResidual(inputs, width, first, expansion))
            inputs = width
    blocks += [conv_bn(inputs, 1280, 1), nn.ReLU6()]
    return Classifier(blocks, 1280, classes)


def randomized(model, seed=0):
    """Gives normalizations weights and statistics that differ between channels."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                tensor.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()
