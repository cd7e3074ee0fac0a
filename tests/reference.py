"""The octave convolution in float64 numpy, written from the paper's equation 4 and the authors' rules, loop by loop.

It shares nothing with ``octzoo``: no function of torch computes anything here. An octave is a pair (high, low) of
arrays [B, C - c, H, W] and [B, c, ceil(H/2), ceil(W/2)]; either may have no channels. Loops run over output positions.
"""

from __future__ import annotations

import numpy as np


def pool(x):
    """2x2 average; a window over the edge averages the pixels that it holds."""
    b, n, height, width = x.shape
    y = np.zeros((b, n, (height + 1) // 2, (width + 1) // 2))
    for i in range(y.shape[2]):
        for j in range(y.shape[3]):
            y[:, :, i, j] = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean(axis=(2, 3))
    return y


def upsample(x, size):
    """Nearest neighbour by 2, cut to ``size``."""
    y = np.zeros((*x.shape[:2], *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y[:, :, i, j] = x[:, :, i // 2, j // 2]
    return y


def merge(high, low):
    return np.concatenate([high, upsample(low, high.shape[2:])], axis=1)


def tap(i, n, extent, padding_mode):
    """Which of ``n`` pixels position ``i`` reads, or None for a zero; up to ``extent`` the last one is repeated."""
    if not 0 <= i < extent:
        if padding_mode == "zeros":
            return None
        if padding_mode == "replicate":
            i = 0 if i < 0 else extent - 1
        elif padding_mode == "circular":
            i %= extent
        elif padding_mode == "reflect":
            i = -i if i < 0 else 2 * (extent - 1) - i
    return min(i, n - 1)


def conv(x, weight, size, stride, before, after, dilation, padding_mode="zeros"):
    """The ordinary convolution (one group) to ``size``; ``before`` and ``after`` are the padding of (height, width).

    Where a map is too small for that size its last row or column is repeated.
    """
    kernel = weight.shape[2:]
    y = np.zeros((x.shape[0], weight.shape[0], *size))
    extent = [
        max(n, (m - 1) * s + d * (k - 1) + 1 - p - q)
        for n, m, s, d, k, p, q in zip(x.shape[2:], size, stride, dilation, kernel, before, after)
    ]
    for i in range(size[0]):
        for j in range(size[1]):
            for u in range(kernel[0]):
                for v in range(kernel[1]):
                    row = tap(i * stride[0] + u * dilation[0] - before[0], x.shape[2], extent[0], padding_mode)
                    column = tap(j * stride[1] + v * dilation[1] - before[1], x.shape[3], extent[1], padding_mode)
                    if row is not None and column is not None:
                        y[:, :, i, j] += x[:, :, row, column] @ weight[:, :, u, v].T
    return y


def octave_conv2d(
    high,
    low,
    weight,
    bias,
    low_out,
    *,
    stride=1,
    padding=(0, 0),
    dilation=(1, 1),
    groups=1,
    stride_mode="pool",
    padding_mode="zeros",
    h2l=True,
    l2h=True,
):
    """(high, low) of the octave convolution. ``padding`` is "same" or that of (height, width)."""
    c_out, high_out = weight.shape[0], weight.shape[0] - low_out
    pooled, step = stride == 2 and stride_mode == "pool", stride if stride_mode == "conv" else 1
    spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:])]
    sizes = high.shape[2:]

    def pads(size, s):
        if padding != "same":
            return padding, padding
        total = [max((-(-n // s) - 1) * s + k + 1 - n, 0) for n, k in zip(size, spans)]
        return [t // 2 for t in total], [t - t // 2 for t in total]

    before, after = pads(sizes, stride)
    out = tuple((n + p + q - k - 1) // stride + 1 for n, p, q, k in zip(sizes, before, after, spans))
    half = tuple((n + 1) // 2 for n in out)

    def convolve(x, w, size):
        return conv(x, w, size, (step, step), *pads(x.shape[2:], step), dilation, padding_mode)

    def path(x, is_low, to_low, w):
        """One path: ``x`` at the input's resolution of its part, the result at the output's resolution of its part."""
        if not is_low:
            x = pool(x) if pooled else x
            return convolve(pool(x), w, half) if to_low else convolve(x, w, out)
        if to_low:
            return convolve(pool(x) if pooled else x, w, half)
        if pooled:
            return convolve(x, w, out)
        if step == 2:  # what the plain convolution does with the merged low part
            return convolve(upsample(x, sizes), w, out)
        return upsample(convolve(x, w, half), out)

    batch, n_high, n_low = high.shape[0], high.shape[1], low.shape[1]
    y_high, y_low = np.zeros((batch, high_out, *out)), np.zeros((batch, low_out, *half))
    if groups == n_high + n_low > 1:  # depthwise: no exchange; a channel that must change sides is resampled first
        for o in range(c_out):
            i, to_low = o * groups // c_out, o >= high_out
            x = high[:, i : i + 1] if i < n_high else low[:, i - n_high : i - n_high + 1]
            if to_low and i < n_high:
                x = pool(x)
            if not to_low and i >= n_high:
                x = upsample(x, sizes)
            target, place = (y_low, o - high_out) if to_low else (y_high, o)
            target[:, place : place + 1] = path(x, to_low, to_low, weight[o : o + 1])
    else:
        for g in range(groups):

            def part(n, g=g):
                return slice(g * n // groups, (g + 1) * n // groups)

            rows_high = np.arange(c_out)[:high_out][part(high_out)]
            rows_low = np.arange(c_out)[high_out:][part(low_out)]
            columns = n_high // groups  # the first columns of a row are those of high inputs
            for x, is_low, cut in ((high, False, slice(0, columns)), (low, True, slice(columns, None))):
                x = x[:, part(x.shape[1])]
                if not x.shape[1]:
                    continue
                if high_out and (l2h or not is_low):
                    y_high[:, part(high_out)] += path(x, is_low, False, weight[rows_high, cut])
                if low_out and (h2l or is_low):
                    y_low[:, part(low_out)] += path(x, is_low, True, weight[rows_low, cut])
    if bias is not None:
        y_high += bias[:high_out, None, None]
        y_low += bias[high_out:, None, None]
    return y_high, y_low


def window(high, low, kernel, stride, padding, reduce):
    """A max or average pooling of both parts, without ceil mode; ``reduce`` of the pixels that a window holds.

    The low part's edge is repeated where it would come out smaller than half the high one, and cut where larger.
    """

    def slide(x, size):
        y = np.zeros((*x.shape[:2], *size))
        extent = [max(n, (m - 1) * stride + kernel - 2 * padding) for n, m in zip(x.shape[2:], size)]
        for i in range(size[0]):
            for j in range(size[1]):
                rows = [tap(i * stride + u - padding, x.shape[2], extent[0], "zeros") for u in range(kernel)]
                columns = [tap(j * stride + v - padding, x.shape[3], extent[1], "zeros") for v in range(kernel)]
                held = x[:, :, [r for r in rows if r is not None]][..., [c for c in columns if c is not None]]
                y[:, :, i, j] = reduce(held, axis=(2, 3))
        return y

    size = tuple((n + 2 * padding - kernel) // stride + 1 for n in high.shape[2:])
    half = tuple((n + 1) // 2 for n in size)
    return slide(high, size), slide(low, half)
