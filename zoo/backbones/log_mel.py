"""Sound -> log-mel images: how loud each band of frequencies is in each short window of time.

Letters: B batch, S samples of sound, M mel bands, N columns of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ZooError

FINEST = 8  # times that windows are lengthened by zeros, so that the narrowest band holds a frequency


def mel(hertz: Tensor) -> Tensor:
    """Hertz -> mel, O'Shaughnessy's formula."""
    return 2595 * torch.log10(1 + hertz / 700)


def hertz(mel: Tensor) -> Tensor:
    """Mel -> hertz."""
    return 700 * (10 ** (mel / 2595) - 1)


def mel_filters(mels: int, points: int, rate: int, fmin: float, fmax: float) -> Tensor:
    """Triangles of height 1, evenly spaced in mel from `fmin` to `fmax` Hz: (M, points // 2 + 1) weights of the
    frequencies of a Fourier transform of `points` samples. A triangle reaches from the peak before to the peak after.
    """
    ends = mel(torch.tensor([fmin, fmax], dtype=torch.float64))
    edges = hertz(torch.linspace(float(ends[0]), float(ends[1]), mels + 2, dtype=torch.float64)).unsqueeze(1)
    frequencies = torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points
    rising = (frequencies - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequencies) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0).float()


class LogMel(nn.Module):
    """(B, S) sound in [-1, 1] -> (B, 1, M, N) image. No parameters, and no buffers in the state dict.

    A row is a band, the highest on top; a column is a window, and N is S // hop. 1 is as loud as a full-scale sine, 0
    is `decibels` below or anything quieter; sound in [-1, 1] may reach a little above 1.

    Args:
        rate: samples a second.
        mels: bands.
        window: samples of sound in a column, under a Hann window.
        hop: samples from a column to the next.
        fmin: Hz, the lower end of the lowest band.
        fmax: Hz, the upper end of the highest band.
        decibels: range of loudness.

    Raises ZooError for more bands than the window can tell apart.
    """

    def __init__(self, rate: int, mels: int, window: int, hop: int, fmin: float, fmax: float, decibels: float):
        super().__init__()
        self.window, self.hop, self.decibels = window, hop, decibels
        self.points = 1 << max(window - 1, 1).bit_length()
        for _ in range(FINEST.bit_length()):
            filters = mel_filters(mels, self.points, rate, fmin, fmax)
            if bool((filters.sum(1) > 0).all()):
                break
            self.points *= 2
        else:
            raise ZooError(
                f"backbone.mels is {mels}, too many bands from {fmin:g} to {fmax:g} Hz for windows of "
                f"{window / rate:g} s; give fewer, or a longer backbone.window"
            )
        shape = torch.hann_window(window)
        self.register_buffer("shape", shape, persistent=False)
        scale = 4 / (self.points * shape.square().sum())  # the power of a full-scale sine is 1
        self.register_buffer("filters", filters.flip(0) * scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        columns = x.shape[-1] // self.hop
        before = (self.points - self.hop) // 2
        after = (columns - 1) * self.hop + self.points - before - x.shape[-1]
        with torch.autocast(x.device.type, enabled=False):
            x = F.pad(x.float(), (before, after))  # every column is centred on its hop
            spectrum = torch.stft(x, self.points, self.hop, self.window, self.shape, center=False, return_complex=True)
            power = self.filters @ spectrum.abs().square()
            quietest = 10 ** (-self.decibels / 10)
            return (10 * power.clamp(min=quietest).log10() / self.decibels + 1).unsqueeze(1)
