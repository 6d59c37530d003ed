"""Triton kernels of encoders/fused.py. Importing this file needs Triton, which PyTorch brings where it knows CUDA.

Letters: x is [B, H, W, C] in memory, channels last, at strides xb, xh, xw (in values; a channel is 1). y is the output,
[B, HO, WO, C], contiguous. A window is the PH x PW values of x under one of y; rows and windows are counted within a
clip. Arithmetic is float32, whatever is read and written. NaN goes through: a comparison that it would lose is
written so that it wins."""

# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"

import triton
import triton.language as tl

# A kernel serves all sizes of these. Of strides and C it wants to know that 16 divides them, to read 16 bytes at once.
ANY_SUM = ["H", "W", "chunk", "chunks"]
ANY_WINDOW = ["H", "W", "HO", "WO", "total"]


@triton.jit(do_not_specialize=ANY_SUM)
def sums(
    x, partial, H, W, C, xb, xh, xw, chunk, chunks,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of x, less the first value of its channel: sum and sum of squares over `chunk` rows of a clip.

    -> partial [B, chunks, 2, C]. The first value stands for the mean, so that no two large sums are subtracted."""
    clip = (tl.program_id(0) // chunks).to(tl.int64)
    part = tl.program_id(0) % chunks
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    pivot = tl.load(x + c, mask=c < C, other=0.0).to(tl.float32)[None, :]
    first = tl.zeros((BR, BC), tl.float32)
    second = tl.zeros((BR, BC), tl.float32)
    end = tl.minimum((part + 1) * chunk, H * W)
    for start in range(part * chunk, end, BR):
        r = start + tl.arange(0, BR)
        live = (r < end)[:, None] & (c < C)[None, :]
        at = clip * xb + (r // W).to(tl.int64) * xh + (r % W).to(tl.int64) * xw
        value = tl.load(x + at[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32) - pivot
        value = tl.where(live, value, 0.0)
        first += value
        second += value * value
    out = partial + tl.program_id(0).to(tl.int64) * 2 * C + c
    tl.store(out, tl.sum(first, 0), mask=c < C)
    tl.store(out + C, tl.sum(second, 0), mask=c < C)


@triton.jit(do_not_specialize=["parts"])
def finish(
    x, partial, parts, C, count, weight, bias, conv_bias,
    running_mean, running_var, batches, momentum, eps, correction, stats,
    HAS_BIAS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The partial sums of `sums` -> stats [4, C]: mean, 1 / std, and scale and shift that normalise x; the running
    statistics go on. conv_bias: what x lacks, as the mean takes it away again; only the running mean has it.
    correction: of the variance that the running one takes, n / (n - 1) or 1."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    has = c < C
    first = tl.zeros((BP, BC), tl.float32)
    second = tl.zeros((BP, BC), tl.float32)
    for start in range(0, parts, BP):
        p = start + tl.arange(0, BP)
        live = (p < parts)[:, None] & has[None, :]
        at = partial + (p * 2 * C)[:, None] + c[None, :]
        first += tl.load(at, mask=live, other=0.0)
        second += tl.load(at + C, mask=live, other=0.0)
    apart = tl.sum(first, 0) / count
    var = tl.sum(second, 0) / count - apart * apart
    var = tl.where(var < 0.0, 0.0, var)
    mean = tl.load(x + c, mask=has, other=0.0).to(tl.float32) + apart
    inverse = 1.0 / tl.sqrt(var + eps)
    scale = tl.load(weight + c, mask=has, other=0.0).to(tl.float32) * inverse
    tl.store(stats + c, mean, mask=has)
    tl.store(stats + C + c, inverse, mask=has)
    tl.store(stats + 2 * C + c, scale, mask=has)
    tl.store(stats + 3 * C + c, tl.load(bias + c, mask=has, other=0.0).to(tl.float32) - mean * scale, mask=has)
    if HAS_BIAS:
        mean += tl.load(conv_bias + c, mask=has, other=0.0).to(tl.float32)
    old_mean, old_var = tl.load(running_mean + c, mask=has), tl.load(running_var + c, mask=has)
    tl.store(running_mean + c, old_mean + momentum * (mean - old_mean), mask=has)
    tl.store(running_var + c, old_var + momentum * (var * correction - old_var), mask=has)
    if tl.program_id(0) == 0:
        tl.store(batches, tl.load(batches) + 1)


@triton.jit
def fold(
    weight, bias, conv_bias, running_mean, running_var, eps, stats, C,
    HAS_BIAS: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Running statistics -> stats [4, C], of which scale and shift are filled: BatchNorm in inference."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    has = c < C
    mean = tl.load(running_mean + c, mask=has, other=0.0)
    if HAS_BIAS:
        mean -= tl.load(conv_bias + c, mask=has, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.load(running_var + c, mask=has, other=1.0) + eps)
    scale = tl.load(weight + c, mask=has, other=0.0).to(tl.float32) * inverse
    tl.store(stats + 2 * C + c, scale, mask=has)
    tl.store(stats + 3 * C + c, tl.load(bias + c, mask=has, other=0.0).to(tl.float32) - mean * scale, mask=has)


@triton.jit(do_not_specialize=ANY_WINDOW)
def apply(
    x, y, short, stats, gate, seed, total, H, W, C, HO, WO,
    xb, xh, xw, sb, sh, sw, dropped, kept,
    PH: tl.constexpr, PW: tl.constexpr, SHORT: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, DROP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """y = pool(dropout(relu(gate * (scale * x + shift) + short))), what is asked for of it.

    dropped: of 2^32 random values, those that drop; kept: what the others are multiplied by. Four tiles of rows share
    a draw of four numbers (Philox, Triton's own)."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    scale = tl.load(stats + 2 * C + c, mask=has, other=0.0)[None, :]
    shift = tl.load(stats + 3 * C + c, mask=has, other=0.0)[None, :]
    TILES: tl.constexpr = 4 if DROP else 1
    row = tl.program_id(0).to(tl.int64) * (BR * TILES) + tl.arange(0, BR)
    if DROP:
        draw = (row[:, None] * C + c[None, :]).to(tl.int32)
        bits0, bits1, bits2, bits3 = tl.randint4x(tl.load(seed), draw)
    for tile in tl.static_range(TILES):
        r = row + tile * BR
        live = (r < total)[:, None] & has[None, :]
        clip, rest = r // (HO * WO), r % (HO * WO)
        ho, wo = rest // WO, rest % WO
        if GATE:
            factor = tl.load(gate + (clip * C)[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
        best = tl.full((BR, BC), float("-inf"), tl.float32)
        for k in tl.static_range(PH * PW):
            h, w = ho * PH + k // PW, wo * PW + k % PW
            at = (clip * xb + h * xh + w * xw)[:, None] + c[None, :]
            value = tl.load(x + at, mask=live, other=0.0).to(tl.float32) * scale + shift
            if GATE:
                value *= factor
            if SHORT:
                at = (clip * sb + h * sh + w * sw)[:, None] + c[None, :]
                value += tl.load(short + at, mask=live, other=0.0).to(tl.float32)
            best = tl.where((value > best) | (value != value), value, best)
        if RELU:
            best = tl.where(best < 0.0, 0.0, best)
        if DROP:
            if tile == 0:
                bits = bits0
            elif tile == 1:
                bits = bits1
            elif tile == 2:
                bits = bits2
            else:
                bits = bits3
            best = tl.where(bits.to(tl.uint32).to(tl.float32) < dropped, 0.0, best * kept)
        tl.store(y + (r * C)[:, None] + c[None, :], best.to(y.dtype.element_ty), mask=live)


@triton.jit
def window_grad(
    x, y, dy, short, scale, shift, factor, clip, ho, wo, rest,
    live, c, C, HO, WO, xb, xh, xw, sb, sh, sw, yb, yh,
    yw, kept,
    PH: tl.constexpr, PW: tl.constexpr, SHORT: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, DROP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Of every window: which of its values is the largest (the first one, as PyTorch has it), that value of x, and the
    gradient that it gets, in front of the gate. Where values are dropped, y says which."""
    best = tl.full((BR, BC), float("-inf"), tl.float32)
    chosen = tl.zeros((BR, BC), tl.float32)
    where = tl.zeros((BR, BC), tl.int32)
    for k in tl.static_range(PH * PW):
        h, w = ho * PH + k // PW, wo * PW + k % PW
        at = (clip * xb + h * xh + w * xw)[:, None] + c[None, :]
        read = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
        value = read * scale + shift
        if GATE:
            value *= factor
        if SHORT:
            at = (clip * sb + h * sh + w * sw)[:, None] + c[None, :]
            value += tl.load(short + at, mask=live, other=0.0).to(tl.float32)
        larger = (value > best) | (value != value)
        best = tl.where(larger, value, best)
        chosen = tl.where(larger, read, chosen)
        where = tl.where(larger, k, where)
    grad = tl.load(dy + (clip * yb + ho * yh + wo * yw)[:, None] + c[None, :], mask=live, other=0.0).to(tl.float32)
    if DROP:
        out = tl.load(y + ((clip * HO * WO + rest) * C)[:, None] + c[None, :], mask=live, other=0.0)
        grad = tl.where(out.to(tl.float32) > 0.0, grad * kept, 0.0)
    elif RELU:
        grad = tl.where(best > 0.0, grad, 0.0)
    return where, chosen, tl.where(live, grad, 0.0)


@triton.jit(do_not_specialize=["HO", "WO", "chunk", "chunks"])
def grad_sums(
    x, y, dy, short, stats, gate, partial, C, HO, WO,
    xb, xh, xw, sb, sh, sw, yb, yh, yw, chunk, chunks, kept,
    PH: tl.constexpr, PW: tl.constexpr, SHORT: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, DROP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """-> partial [B, chunks, 3, C] over `chunk` windows of a clip: sums of the gradient behind the normalisation, of
    it times the normalised x, and of the gradient of the gate."""
    clip = (tl.program_id(0) // chunks).to(tl.int64)
    part = tl.program_id(0) % chunks
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    mean = tl.load(stats + c, mask=has, other=0.0)[None, :]
    inverse = tl.load(stats + C + c, mask=has, other=0.0)[None, :]
    scale = tl.load(stats + 2 * C + c, mask=has, other=0.0)[None, :]
    shift = tl.load(stats + 3 * C + c, mask=has, other=0.0)[None, :]
    factor = scale
    if GATE:
        factor = tl.load(gate + clip * C + c, mask=has, other=0.0).to(tl.float32)[None, :]
    plain = tl.zeros((BR, BC), tl.float32)
    times = tl.zeros((BR, BC), tl.float32)
    gated = tl.zeros((BR, BC), tl.float32)
    end = tl.minimum((part + 1) * chunk, HO * WO)
    for start in range(part * chunk, end, BR):
        rest = start + tl.arange(0, BR)
        live = (rest < end)[:, None] & has[None, :]
        ho, wo = (rest // WO).to(tl.int64), (rest % WO).to(tl.int64)
        _, chosen, grad = window_grad(
            x, y, dy, short, scale, shift, factor, clip, ho, wo, rest, live, c, C, HO, WO, xb, xh, xw, sb, sh, sw,
            yb, yh, yw, kept, PH, PW, SHORT, GATE, RELU, DROP, BR, BC,
        )  # fmt: skip
        if GATE:
            gated += grad * (chosen * scale + shift)
            grad *= factor
        plain += grad
        times += tl.where(live, grad * (chosen - mean) * inverse, 0.0)
    out = partial + tl.program_id(0).to(tl.int64) * 3 * C + c
    tl.store(out, tl.sum(plain, 0), mask=has)
    tl.store(out + C, tl.sum(times, 0), mask=has)
    if GATE:
        tl.store(out + 2 * C, tl.sum(gated, 0), mask=has)


@triton.jit(do_not_specialize=["parts"])
def grad_finish(
    partial, parts, C, grads, clips,
    HAS_CLIPS: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """The partial sums of `grad_sums` -> grads [2, C]: gradients of bias and weight. clips [2, C]: what the gate's
    clip means add to both."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    has = c < C
    plain = tl.zeros((BP, BC), tl.float32)
    times = tl.zeros((BP, BC), tl.float32)
    for start in range(0, parts, BP):
        p = start + tl.arange(0, BP)
        live = (p < parts)[:, None] & has[None, :]
        at = partial + (p * 3 * C)[:, None] + c[None, :]
        plain += tl.load(at, mask=live, other=0.0)
        times += tl.load(at + C, mask=live, other=0.0)
    bias, weight = tl.sum(plain, 0), tl.sum(times, 0)
    if HAS_CLIPS:
        bias += tl.load(clips + c, mask=has, other=0.0)
        weight += tl.load(clips + C + c, mask=has, other=0.0)
    tl.store(grads + c, bias, mask=has)
    tl.store(grads + C + c, weight, mask=has)


@triton.jit(do_not_specialize=[*ANY_WINDOW, "HC", "WC"])
def grad_input(
    x, y, dy, short, stats, gate, grads, means, dx, dshort,
    total, count, H, W, C, HO, WO, HC, WC,
    xb, xh, xw, sb, sh, sw, yb, yh, yw, kept,
    PH: tl.constexpr, PW: tl.constexpr, SHORT: tl.constexpr, GATE: tl.constexpr, RELU: tl.constexpr, DROP: tl.constexpr,
    BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """-> dx, laid out as x, and dshort [B, H, W, C], contiguous. HC x WC windows, those at the edge with what the
    pooling drops. means [B, C]: gradient of a clip's mean, divided by its H W values."""
    r = tl.program_id(0).to(tl.int64) * BR + tl.arange(0, BR)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    has = c < C
    clip, rest = r // (HC * WC), r % (HC * WC)
    ho, wo = rest // WC, rest % WC
    inside = (r < total)[:, None] & has[None, :]
    live = inside & ((ho < HO) & (wo < WO))[:, None]
    mean = tl.load(stats + c, mask=has, other=0.0)[None, :]
    inverse = tl.load(stats + C + c, mask=has, other=0.0)[None, :]
    scale = tl.load(stats + 2 * C + c, mask=has, other=0.0)[None, :]
    shift = tl.load(stats + 3 * C + c, mask=has, other=0.0)[None, :]
    one = tl.load(grads + c, mask=has, other=0.0)[None, :] / count
    two = tl.load(grads + C + c, mask=has, other=0.0)[None, :] / count
    factor = scale
    if GATE:
        factor = tl.load(gate + (clip * C)[:, None] + c[None, :], mask=inside, other=0.0).to(tl.float32)
    where, _, grad = window_grad(
        x, y, dy, short, scale, shift, factor, clip, ho, wo, ho * WO + wo, live, c, C, HO, WO, xb, xh, xw, sb, sh, sw,
        yb, yh, yw, kept, PH, PW, SHORT, GATE, RELU, DROP, BR, BC,
    )  # fmt: skip
    from_mean = tl.zeros((BR, BC), tl.float32)
    if GATE:
        from_mean = tl.load(means + (clip * C)[:, None] + c[None, :], mask=inside, other=0.0)
    for k in tl.static_range(PH * PW):
        h, w = ho * PH + k // PW, wo * PW + k % PW
        there = inside & ((h < H) & (w < W))[:, None]
        at = (clip * xb + h * xh + w * xw)[:, None] + c[None, :]
        normal = (tl.load(x + at, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        mine = tl.where(where == k, grad, 0.0)
        if SHORT:
            to = (((clip * H + h) * W + w) * C)[:, None] + c[None, :]
            tl.store(dshort + to, mine.to(dshort.dtype.element_ty), mask=there)
        if GATE:
            mine = mine * factor + from_mean
        tl.store(dx + at, (scale * (mine - one - normal * two)).to(dx.dtype.element_ty), mask=there)
