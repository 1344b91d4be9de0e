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

INLINE piece weights(const void *w, int bf16, int64_t at) {
    return bf16 ? load_piece_bf16((const uint16_t *)w + at) : load_piece((const float *)w + at);
}

#define MOST_ROWS 8
#define MOST_PANELS 8

/* `rows`, `panels` and `bf16` are constants wherever this is used, so the sums stay in registers. */
INLINE void tile(const op *o, const float *const *x, float *const *y, int panel, const int rows, const int panels,
                 const int bf16) {
    piece sum[MOST_ROWS][MOST_PANELS * PIECES];
    const int64_t panel_size = (int64_t)o->in * LANES;
    const int64_t first = panel * panel_size;
    const float *bias = o->w2;
    const float *from[MOST_ROWS];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) from[r] = x[r];
#pragma GCC unroll 8
    for (int p = 0; p < panels; p++) {
        const int left = o->out - (panel + p) * LANES;
        float start[LANES] = {0};
        if (bias) memcpy(start, bias + (panel + p) * LANES, sizeof(float) * (size_t)(left >= LANES ? LANES : left));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int h = 0; h < PIECES; h++) sum[r][p * PIECES + h] = load_piece(start + h * PIECE);
    }
    const int in = o->in;
    const void *w = o->w;
    for (int i = 0; i < in; i++) {
        piece column[MOST_PANELS * PIECES];
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++)
#pragma GCC unroll 4
            for (int h = 0; h < PIECES; h++)
                column[p * PIECES + h] = weights(w, bf16, first + p * panel_size + (int64_t)i * LANES + h * PIECE);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const piece value = from[r][i] - (piece){0};
#pragma GCC unroll 16
            for (int q = 0; q < panels * PIECES; q++) sum[r][q] += column[q] * value;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int p = 0; p < panels; p++) {
            float *to = y[r] + (panel + p) * LANES;
            const int left = o->out - (panel + p) * LANES;
            float made[LANES];
#pragma GCC unroll 4
            for (int h = 0; h < PIECES; h++) *(piece *)(made + h * PIECE) = sum[r][p * PIECES + h];
            lanes whole = load(made);
            if (left >= LANES) {
                if (o->add) whole += load(to);
                store(to, whole);
            } else {
                if (o->add) whole += load_some(to, left);
                store_some(to, whole, left);
            }
        }
}

#define TILES(R, P)                                                                                                  \
    for (; n - r >= R; r += R)                                                                                       \
        if (o->bf16)                                                                                                 \
            tile(o, x + r, y + r, panel, R, P, 1);                                                                   \
        else                                                                                                         \
            tile(o, x + r, y + r, panel, R, P, 0);

#if PIECE == 16 /* 32 registers: the sums of eight rows and two panels */
#define HIGH 8
#define WIDE 8
#else /* 16 registers of eight, or more of four: the sums of four rows and one panel */
#define HIGH 4
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
#if PIECE == 16
    for (; panels - panel >= 2; panel += 2) {
        int r = 0;
        TILES(HIGH, 2)
        TILES(4, 2)
        TILES(2, 2)
        TILES(1, 2)
    }
#endif
    for (; panel < panels; panel++) {
        int r = 0;
        TILES(HIGH, 1)
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
