"""SampleCNN and TagSincNet as one writes them down: nn.Conv1d on [B, C, T], nothing in place, float32.

What benchmarks/training_step.py measures against. Names and shapes of the weights are those of `atose_ray.encoders`,
so that one state_dict fits both.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from atose_ray.audio.sinc import sinc_stem
from atose_ray.encoders.sample_cnn import SampleBody
from atose_ray.encoders.tag_sinc_net import TagSincNet


def plain_norm(channels: int) -> nn.BatchNorm1d:
    """BatchNorm with the published constants."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


class PlainBlock(nn.Module):
    """[B, C, T] -> [B, C', T // 3]: any of the four 1-D blocks, with the weights of `block`."""

    def __init__(self, block: nn.Module, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        for name, child in block.named_children():
            if isinstance(child, nn.Conv1d):
                sizes = (child.in_channels, child.out_channels, child.kernel_size[0])
                self.add_module(name, nn.Conv1d(*sizes, padding=child.kernel_size[0] // 2))
            elif isinstance(child, nn.BatchNorm1d):
                self.add_module(name, plain_norm(child.num_features))
            elif isinstance(child, nn.Linear):
                self.add_module(name, nn.Linear(child.in_features, child.out_features))
        self.load_state_dict(block.state_dict())

    def excite(self, x_BCT: torch.Tensor) -> torch.Tensor:
        """[B, C, T] -> [B, C, T]."""
        if not hasattr(self, "fc1"):
            return x_BCT
        return x_BCT * torch.sigmoid(self.fc2(functional.relu(self.fc1(x_BCT.mean(dim=2)))))[:, :, None]

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "conv"):
            return self.excite(functional.max_pool1d(functional.relu(self.bn(self.conv(x_BCT))), 3))
        shortcut_BCT = self.sc_bn(self.sc_conv(x_BCT)) if hasattr(self, "sc_conv") else x_BCT
        main_BCT = functional.relu(self.bn1(self.conv1(x_BCT)))
        main_BCT = self.bn2(self.conv2(functional.dropout(main_BCT, self.dropout, self.training)))
        return functional.max_pool1d(functional.relu(shortcut_BCT + self.excite(main_BCT)), 3)


class PlainBody(nn.Module):
    """[B, T] -> [B, E]: the plain form of an encoder with 1-D blocks, with its weights."""

    def __init__(self, encoder: SampleBody, dropout: float) -> None:
        super().__init__()
        stem = encoder.stem.conv
        self.sinc = encoder.sinc if isinstance(encoder, TagSincNet) else None
        self.conv = nn.Conv1d(stem.in_channels, stem.out_channels, 3, stride=3)
        self.conv.load_state_dict(stem.state_dict())
        self.bn = plain_norm(stem.out_channels)
        self.blocks = nn.ModuleList(PlainBlock(encoder.get_submodule(n), dropout) for n in encoder.block_names)
        self.fc = nn.Linear(encoder.fc.in_features, encoder.fc.out_features)
        self.fc.load_state_dict(encoder.fc.state_dict())
        self.fc_bn = plain_norm(encoder.embed_dim)

    def forward(self, audio_BT: torch.Tensor) -> torch.Tensor:
        heard_BCT = sinc_stem(audio_BT, self.sinc(), self.conv) if self.sinc else self.conv(audio_BT[:, None])
        x_BCT = functional.relu(self.bn(heard_BCT))
        last = []
        for block in self.blocks:
            x_BCT = block(x_BCT)
            last = [*last[-2:], x_BCT.amax(dim=2)]
        return functional.relu(self.fc_bn(self.fc(torch.cat(last, dim=1))))
