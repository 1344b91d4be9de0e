/* Streaming attention of one row: its new positions into the ring, then over every position that is valid.
 *
 * The ring holds keys as [heads][capacity / 16][width][16], so that sixteen scores come from one pass without a sum
 * across lanes, and values as [heads][capacity][width], all of them float32 or all bfloat16: an old call's step spends
 * much of its time on reading them. Only positions that were written are read: a call that is four seconds old costs
 * four seconds' worth, and the ring need not be cleared for the next caller. */
#ifndef DUOLOGUE_ATTENTION_H
#define DUOLOGUE_ATTENTION_H

#include "program.h"
#include "vector.h"

#define LARGEST_CONTEXT 8192

/* Cosines and sines of positions from `first` on, [times][2][half]. Angles are rounded as upstream rounds them. */
static void rope(float *y, const float *frequencies, int64_t first, int times, int half) {
    for (int t = 0; t < times; t++)
        for (int i = 0; i < half; i++) {
            const float angle = frequencies[i] * (float)(first + t);
            y[(2 * t) * half + i] = cosf(angle);
            y[(2 * t + 1) * half + i] = sinf(angle);
        }
}

INLINE void turn(float *x, const float *table, int half) {
    for (int i = 0; i < half; i++) {
        const float real = x[2 * i], imaginary = x[2 * i + 1], c = table[i], s = table[half + i];
        x[2 * i] = real * c - imaginary * s;
        x[2 * i + 1] = real * s + imaginary * c;
    }
}

/* Sixteen of what a ring keeps, from number `at` on; and one put there. */
INLINE lanes kept(const void *ring, int64_t at, int bf16) {
    return bf16 ? load_bf16((const uint16_t *)ring + at) : load((const float *)ring + at);
}
INLINE float kept_one(const void *ring, int64_t at, int bf16) {
    return bf16 ? from_bf16(((const uint16_t *)ring)[at]) : ((const float *)ring)[at];
}
INLINE void keep(void *ring, int64_t at, float x, int bf16) {
    if (bf16)
        ((uint16_t *)ring)[at] = to_bf16(x);
    else
        ((float *)ring)[at] = x;
}

INLINE void attend_over(float *qkv, float *out, void *ring, const float *table, int64_t first, int times, int heads,
                        int width, int capacity, int bf16) {
    const int blocks = (capacity + LANES - 1) / LANES;
    const int all = heads * width;
    const int64_t values = (int64_t)heads * blocks * LANES * width; /* behind the keys */
    for (int t = 0; t < times; t++) {
        float *const now = qkv + (int64_t)t * 3 * all;
        const int place = (int)((first + t) % capacity);
        for (int h = 0; h < heads; h++) {
            if (table) {
                turn(now + h * width, table + 2 * t * (width / 2), width / 2);
                turn(now + all + h * width, table + 2 * t * (width / 2), width / 2);
            }
            const int64_t key = ((int64_t)h * blocks + place / LANES) * LANES * width + place % LANES;
            const int64_t value = values + ((int64_t)h * capacity + place) * width;
            for (int i = 0; i < width; i++) keep(ring, key + (int64_t)i * LANES, now[all + h * width + i], bf16);
            for (int i = 0; i < width; i++) keep(ring, value + i, now[2 * all + h * width + i], bf16);
        }
    }
    const int64_t newest = first + times - 1;
    const float scale = 1.0f / sqrtf((float)width);
    for (int t = 0; t < times; t++) {
        const int64_t here = first + t;
        /* Places of the ring in use are 0 to `used` - 1; those of positions after `here` are masked below. */
        const int used = (int)(newest + 1 < capacity ? newest + 1 : capacity);
        for (int h = 0; h < heads; h++) {
            const float *q = qkv + (int64_t)t * 3 * all + h * width;
            float score[LARGEST_CONTEXT + LANES];
            for (int b = 0; b * LANES < used; b++) {
                lanes s = {0};
                const int64_t block = ((int64_t)h * blocks + b) * LANES * width;
                for (int i = 0; i < width; i++) s += every(q[i]) * kept(ring, block + (int64_t)i * LANES, bf16);
                store(score + b * LANES, s * scale);
            }
            for (int64_t later = here + 1; later <= newest; later++) score[later % capacity] = -INFINITY;
            for (int i = used; i % LANES; i++) score[i] = -INFINITY;
            lanes top = every(-INFINITY);
            for (int b = 0; b * LANES < used; b++) top = most(top, load(score + b * LANES));
            const float highest = most_of(top);
            lanes total = {0};
            for (int b = 0; b * LANES < used; b++) {
                const lanes s = load(score + b * LANES);
                const lanes e = choose(s > -INFINITY, exp_of(s - highest), every(0.0f));
                store(score + b * LANES, e);
                total += e;
            }
            const float share = 1.0f / sum_of(total);
            float *to = out + (int64_t)t * all + h * width;
            const int64_t v = values + (int64_t)h * capacity * width;
            int i = 0;
            for (; width - i >= 2 * LANES; i += 2 * LANES) {
                lanes a = {0}, b = {0}, c = {0}, d = {0};
                int place = 0;
                for (; place + 1 < used; place += 2) {
                    a += score[place] * kept(ring, v + (int64_t)place * width + i, bf16);
                    b += score[place] * kept(ring, v + (int64_t)place * width + i + LANES, bf16);
                    c += score[place + 1] * kept(ring, v + (int64_t)(place + 1) * width + i, bf16);
                    d += score[place + 1] * kept(ring, v + (int64_t)(place + 1) * width + i + LANES, bf16);
                }
                if (place < used) {
                    a += score[place] * kept(ring, v + (int64_t)place * width + i, bf16);
                    b += score[place] * kept(ring, v + (int64_t)place * width + i + LANES, bf16);
                }
                store(to + i, (a + c) * share);
                store(to + i + LANES, (b + d) * share);
            }
            for (; i < width; i++) {
                float a = 0.0f;
                for (int place = 0; place < used; place++)
                    a += score[place] * kept_one(ring, v + (int64_t)place * width + i, bf16);
                to[i] = a * share;
            }
        }
    }
}

/* qkv is [times][3][heads][width], and is turned in place; out is [times][heads][width]. */
static void attend(float *qkv, float *out, void *ring, const float *table, int64_t first, int times, int heads,
                   int width, int capacity, int bf16) {
    if (bf16)
        attend_over(qkv, out, ring, table, first, times, heads, width, capacity, 1);
    else
        attend_over(qkv, out, ring, table, first, times, heads, width, capacity, 0);
}

#endif
