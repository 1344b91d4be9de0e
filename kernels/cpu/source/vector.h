/* Sixteen floats at a time, in the vector extension that gcc and clang share, and the functions they need.
 *
 * Nothing here depends on the width of the machine's registers: the compiler splits a vector where it must. But it keeps
 * one that it has split in memory, so what stays in registers for long is made of `piece`s, which are as wide as those. */
#ifndef DUOLOGUE_VECTOR_H
#define DUOLOGUE_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t lanes_i __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint32_t lanes_u __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t lanes_h __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

#if defined __AVX512F__
#define PIECE 16
#elif defined __AVX__
#define PIECE 8
#else
#define PIECE 4
#endif
#define PIECES (LANES / PIECE)

typedef float piece __attribute__((vector_size(4 * PIECE), aligned(4), may_alias));
typedef uint32_t piece_u __attribute__((vector_size(4 * PIECE), aligned(4), may_alias));
typedef uint16_t piece_h __attribute__((vector_size(2 * PIECE), aligned(2), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE lanes load(const float *from) { return *(const lanes *)from; }
INLINE void store(float *to, lanes x) { *(lanes *)to = x; }
INLINE lanes every(float x) { return x - (lanes){0}; }

/* bfloat16 is the upper half of a float. */
INLINE lanes load_bf16(const uint16_t *from) {
#ifdef __AVX512F__ /* one instruction that compilers do not find by themselves */
    return (lanes)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)from)), 16);
#endif
    return (lanes)(__builtin_convertvector(*(const lanes_h *)from, lanes_u) << 16);
}
INLINE piece load_piece(const float *from) { return *(const piece *)from; }
INLINE piece load_piece_bf16(const uint16_t *from) {
#ifdef __AVX512F__
    return (piece)load_bf16(from);
#endif
    return (piece)(__builtin_convertvector(*(const piece_h *)from, piece_u) << 16);
}
INLINE float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The nearest, of two equally near ones the even one; what is no number stays none. */
INLINE uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (x != x) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* The first `n` of sixteen. */
INLINE lanes load_some(const float *from, int n) {
    float buffer[LANES] = {0};
    memcpy(buffer, from, sizeof(float) * (size_t)n);
    return load(buffer);
}
INLINE void store_some(float *to, lanes x, int n) {
    float buffer[LANES];
    store(buffer, x);
    memcpy(to, buffer, sizeof(float) * (size_t)n);
}

INLINE lanes choose(lanes_i condition, lanes yes, lanes no) {
    return (lanes)((condition & (lanes_i)yes) | (~condition & (lanes_i)no));
}
INLINE lanes least(lanes a, lanes b) { return choose(a < b, a, b); }
INLINE lanes most(lanes a, lanes b) { return choose(a > b, a, b); }

/* Always in the same order, so that a sum does not depend on how it was compiled. */
INLINE float sum_of(lanes x) {
    float v[LANES];
    store(v, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
}
INLINE float most_of(lanes x) {
    float v[LANES];
    store(v, x);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] = v[i] > v[i + width] ? v[i] : v[i + width];
    return v[0];
}

/* e**x; Cephes' polynomial, two units in the last place. Saturates instead of overflowing. */
INLINE lanes exp_of(lanes x) {
    x = least(most(x, every(-87.0f)), every(88.0f));
    lanes n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    lanes r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    lanes y = every(1.9875691500e-4f);
    y = y * r + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + r + 1.0f;
    lanes_i power = (__builtin_convertvector(n, lanes_i) + 127) << 23;
    return y * (lanes)power;
}

/* ln x for normal positive x; Cephes' polynomial. */
INLINE lanes log_of(lanes x) {
    lanes_i bits = (lanes_i)x;
    lanes_i exponent = ((bits >> 23) & 255) - 126;
    lanes m = (lanes)((bits & 0x007fffff) | 0x3f000000);
    lanes_i small = m < 0.707106781186547524f;
    exponent = exponent + small; /* true is -1 */
    m = m + choose(small, m, every(0.0f)) - 1.0f;
    lanes z = m * m;
    lanes y = every(7.0376836292e-2f);
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z;
    lanes e = __builtin_convertvector(exponent, lanes);
    y = y + e * -2.12194440e-4f - z * 0.5f;
    return m + y + e * 0.693359375f;
}

/* The error function as a rational of x between -4 and 4, beyond which it is 1 to seven digits. */
INLINE lanes erf_of(lanes x) {
    x = least(most(x, every(-4.0f)), every(4.0f));
    lanes s = x * x;
    lanes p = every(-2.72614225801306e-10f);
    p = p * s + 2.77068142495902e-08f;
    p = p * s + -2.10102402082508e-06f;
    p = p * s + -5.69250639462346e-05f;
    p = p * s + -7.34990630326855e-04f;
    p = p * s + -2.95459980854025e-03f;
    p = p * s + -1.60960333262415e-02f;
    lanes q = every(-1.45660718464996e-05f);
    q = q * s + -2.13374055278905e-04f;
    q = q * s + -1.68282697438203e-03f;
    q = q * s + -7.37332916720468e-03f;
    q = q * s + -1.42647390514189e-02f;
    return x * p / q;
}

INLINE lanes elu_of(lanes x) { return choose(x > 0.0f, x, exp_of(least(x, every(0.0f))) - 1.0f); }
INLINE lanes gelu_of(lanes x) { return 0.5f * x * (1.0f + erf_of(x * 0.70710678118654752f)); }
INLINE lanes silu_of(lanes x) { return x / (1.0f + exp_of(-x)); }

#endif
