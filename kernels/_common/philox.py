"""The counter-based random generator, in registers.

``../noise/README.md`` defines the numbers, by equations (1) to (3); ``../noise/reference.py`` computes them on the CPU.
"""

import triton
import triton.language as tl

_TWO_PI_PER_WORD = tl.constexpr(1.4629180792671596e-09)  # 2 pi / 2^32
_SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def philox_words(group, seed, offset):
    """Return the four uint32 words of each counter.

    group: int64 tensor of any shape, with the domain in its top byte; seed, offset: int64 scalars.
    """
    c0 = group.to(tl.uint32)  # (1)
    c1 = (group >> 32).to(tl.uint32)
    zero = tl.zeros_like(c0)
    c2 = zero + offset.to(tl.uint32)
    c3 = zero + (offset >> 32).to(tl.uint32)
    return tl.philox(seed, c0, c1, c2, c3)


@triton.jit
def _log_of_unit(u):
    """Return log u for 2^-32 <= u <= 1 in fp32, accurate to about 1 ulp even near u = 1, where lg2.approx is not."""
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 126
    mantissa = ((bits & 0x007FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)
    low = mantissa < _SQRT_HALF
    f = tl.where(low, mantissa + mantissa, mantissa) - 1.0
    e = tl.where(low, exponent - 1, exponent).to(tl.float32)
    # log(1 + f) = f - f^2/2 + f^3 P(f), P from cephes logf
    p = 7.0376836292e-2 * f - 1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f - 1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f - 1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f - 2.4999993993e-1
    p = p * f + 3.3333331174e-1
    f2 = f * f
    y = p * f * f2 - 2.12194440e-4 * e
    y = y - 0.5 * f2
    return (f + y) + 0.693359375 * e


@triton.jit
def box_muller(word_radius, word_angle):
    """Return two independent standard normals in fp32, made from two uint32 words."""
    u = (word_radius | 1).to(tl.float32) * 2.3283064365386963e-10  # (2)
    radius = tl.sqrt(-2.0 * _log_of_unit(u))
    # (2): angle = quadrant pi/2 + phi, |phi| <= pi/4; split in integers to keep sine and cosine accurate at their zeros
    quadrant = (word_angle + 0x20000000) >> 30
    phi = ((word_angle << 2).to(tl.int32, bitcast=True) >> 2).to(tl.float32) * _TWO_PI_PER_WORD
    phi2 = phi * phi
    sine = ((-1.9515295891e-4 * phi2 + 8.3321608736e-3) * phi2 - 1.6666654611e-1) * phi2 * phi + phi
    cosine = (2.443315711809948e-5 * phi2 - 1.388731625493765e-3) * phi2 + 4.166664568298827e-2
    cosine = cosine * phi2 * phi2 - 0.5 * phi2 + 1.0
    odd = (quadrant & 1) != 0
    x = tl.where(odd, sine, cosine) * radius  # (3)
    y = tl.where(odd, cosine, sine) * radius
    x = tl.where(((quadrant + 1) & 2) != 0, -x, x)
    y = tl.where((quadrant & 2) != 0, -y, y)
    return x, y


@triton.jit
def gaussian_groups(group, seed, offset):
    """Draw elements 4 group + (0, 1, 2, 3) of the stream. group: int64 of shape S; returns fp32 of shape S + (4,)."""
    w0, w1, w2, w3 = philox_words(group, seed, offset)
    n0, n1 = box_muller(w0, w1)
    n2, n3 = box_muller(w2, w3)
    return lanes(n0, n1, n2, n3)


@triton.jit
def lanes(v0, v1, v2, v3):
    """Interleave four values of each group as the innermost axis: shape S becomes S + (4,)."""
    quads = tl.join(tl.join(v0, v2), tl.join(v1, v3))  # [..., 2, 2]
    return tl.reshape(quads, v0.shape + (4,))
