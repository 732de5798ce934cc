"""Heads through the output projection: quantized weights, and steps that can't be followed."""

import pytest
import torch
from torch import nn

from seeing.branches import HeadMap, NotLinear
from seeing.operations import Link


class RMSNorm(nn.Module):
    """Gain 1 + w, as Gemma has it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.linspace(-0.5, 0.5, width)), 1e-6

    def forward(self, x):
        return x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * (1 + self.weight)


@pytest.fixture
def z():
    return torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def out():
    torch.manual_seed(0)
    return nn.Linear(12, 8)


@torch.no_grad()
def test_heads_add_up_behind_a_norm_and_a_gate(z, out):
    layer = nn.Module()
    layer.gate, norm = nn.Parameter(torch.tensor([0.3])), RMSNorm(8)
    heads = HeadMap(out, layer, [Link(module=norm), Link(factor="self.gate.tanh()")])
    expected = norm(out(z.flatten(2))) * layer.gate.tanh()
    shares = heads.heads(z)
    torch.testing.assert_close(heads.total(shares, z), expected)
    alone = HeadMap(out, layer, []).heads(z)
    assert (shares / alone).std(dim=2).max() < 1e-5, "every head goes through the same scale"


@torch.no_grad()
def test_an_8_bit_weight_is_dequantized(z, out):
    """bitsandbytes' layout: rows of whole numbers, and the largest of each row."""
    largest = out.weight.abs().amax(1)
    whole = nn.Parameter((out.weight / largest[:, None] * 127).round().to(torch.int8), requires_grad=False)
    whole.SCB = largest
    quantized = nn.Linear(12, 8)
    quantized.weight, quantized.bias = whole, out.bias
    found = HeadMap(quantized, nn.Module(), []).heads(z)
    torch.testing.assert_close(found, HeadMap(out, nn.Module(), []).heads(z), rtol=0, atol=0.02)


def test_a_weight_that_cannot_be_read_says_so(out):
    packed = nn.Module()
    packed.weight = nn.Parameter(torch.zeros(6, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(NotLinear, match=r"has torch.uint8, \(6, 1\); load without quantization"):
        HeadMap(packed, nn.Module(), [])
    with pytest.raises(NotLinear, match="no weight"):
        HeadMap(nn.Module(), nn.Module(), [])


def test_steps_that_cannot_be_followed_say_so(out):
    with pytest.raises(NotLinear, match="LayerNorm behind the attention is no RMS norm"):
        HeadMap(out, nn.Module(), [Link(module=nn.LayerNorm(8))])
    with pytest.raises(NotLinear, match="depends on the input"):
        HeadMap(out, nn.Module(), [Link(factor="mask", known=False)])
