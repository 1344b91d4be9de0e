/* y[t] = w x[t]: the product that linear layers and convolutions are made of.
 *
 * Sound is kept with time first, so the window of a convolution is one stretch of memory and a convolution is
 * this product with overlapping rows; a transposed one is this product with several outputs for each input.
 *
 * Weights lie in panels of sixteen outputs, [outputs / 16][in][16]. Several rows and several panels are worked on
 * at once, so that a weight that was read is used for many rows; but each result is one sum over the inputs in their
 * order, however many rows there are, so it is the same to the last bit in any company. */
#ifndef DUOLOGUE_MATMUL_H
#define DUOLOGUE_MATMUL_H

#include "program.h"
#include "vector.h"

#define CHUNK 128

INLINE lanes weights(const void *w, int bf16, int64_t at) {
    return bf16 ? load_bf16((const uint16_t *)w + at) : load((const float *)w + at);
}

#define MOST_ROWS 8
#define MOST_PANELS 8

/* `rows`, `panels` and `bf16` are constants wherever this is used, so the sums stay in registers. */
INLINE void tile(const op *o, const float *const *x, float *const *y, int panel, const int rows, const int panels,
                 const int bf16) {
    lanes sum[MOST_ROWS][MOST_PANELS];
    const int64_t panel_size = (int64_t)o->in * LANES;
    const int64_t first = panel * panel_size;
    const float *bias = o->w2;
    const float *from[MOST_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) from[r] = x[r];
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++) {
        const int left = o->out - (panel + p) * LANES;
        lanes start = {0};
        if (bias) start = left >= LANES ? load(bias + (panel + p) * LANES) : load_some(bias + (panel + p) * LANES, left);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) sum[r][p] = start;
    }
    const int in = o->in;
    const void *w = o->w;
    for (int i = 0; i < in; i++) {
        lanes column[MOST_PANELS];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) column[p] = weights(w, bf16, first + p * panel_size + (int64_t)i * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const lanes value = every(from[r][i]);
#pragma GCC unroll 8
            for (int p = 0; p < panels; p++) sum[r][p] += column[p] * value;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            float *to = y[r] + (panel + p) * LANES;
            const int left = o->out - (panel + p) * LANES;
            if (left >= LANES) {
                if (o->add) sum[r][p] += load(to);
                store(to, sum[r][p]);
            } else {
                if (o->add) sum[r][p] += load_some(to, left);
                store_some(to, sum[r][p], left);
            }
        }
}

#define TILES(R, P)                                                                                                  \
    for (; n - r >= R; r += R)                                                                                       \
        if (o->bf16)                                                                                                 \
            tile(o, x + r, y + r, panel, R, P, 1);                                                                   \
        else                                                                                                         \
            tile(o, x + r, y + r, panel, R, P, 0);

#ifdef __AVX512F__ /* 32 registers of sixteen floats */
#define TALL 8
#define WIDE 8
#else /* 16 or 32 registers of eight or four */
#define TALL 4
#define WIDE 4
#endif

static void chunk_matmul(const op *o, const float *const *x, float *const *y, int n) {
    const int panels = (o->out + LANES - 1) / LANES;
    int panel = 0;
    if (n == 1)
        for (; panels - panel >= WIDE; panel += WIDE) {
            int r = 0;
            TILES(1, WIDE)
        }
    for (; panels - panel >= 2; panel += 2) {
        int r = 0;
        TILES(TALL, 2)
        TILES(4, 2)
        TILES(2, 2)
        TILES(1, 2)
    }
    for (; panel < panels; panel++) {
        int r = 0;
        TILES(8, 1)
        TILES(4, 1)
        TILES(2, 1)
        TILES(1, 1)
    }
}

static void matmul(const op *o, float *const *base, int n) {
    const float *x[CHUNK];
    float *y[CHUNK];
    int filled = 0;
    for (int row = 0; row < n; row++)
        for (int t = 0; t < o->times; t++) {
            x[filled] = base[row] + o->x + t * o->x_stride;
            y[filled] = base[row] + o->y + t * o->y_stride;
            if (++filled == CHUNK) {
                chunk_matmul(o, x, y, filled);
                filled = 0;
            }
        }
    if (filled) chunk_matmul(o, x, y, filled);
}

/* What the rows' adapters add to a product. Rows of one adapter are worked on together. */
static void adapt(const op *o, const model *m, const int32_t *rows, float *const *base, int n) {
    static const int32_t none = 0;
    for (int first = 0; first < n; first++) {
        const int32_t adapter = m->adapter[rows[first]];
        int seen = adapter == none;
        for (int i = 0; i < first && !seen; i++) seen = m->adapter[rows[i]] == adapter;
        if (seen) continue;
        const lora *added = m->loras + adapter * m->sites + o->site;
        if (!added->a) continue;
        float inner[CHUNK][HIGHEST_RANK];
        const float *x[CHUNK], *middle[CHUNK];
        float *to_middle[CHUNK], *y[CHUNK];
        const op down = {.in = o->in, .out = (int32_t)added->rank, .w = added->a};
        const op up = {.in = (int32_t)added->rank, .out = o->out, .w = added->b, .add = 1};
        for (int i = first; i < n;) {
            int filled = 0;
            for (; i < n && filled < CHUNK; i++)
                if (m->adapter[rows[i]] == adapter) {
                    x[filled] = base[i] + o->x;
                    middle[filled] = to_middle[filled] = inner[filled];
                    y[filled++] = base[i] + o->y;
                }
            if (filled) {
                chunk_matmul(&down, x, to_middle, filled);
                chunk_matmul(&up, middle, y, filled);
            }
        }
    }
}

#endif
