/* What happens to a row's numbers between the products: norms, activations, embeddings, histories, codebooks. */
#ifndef DUOLOGUE_LAYERS_H
#define DUOLOGUE_LAYERS_H

#include <float.h>

#include "program.h"
#include "vector.h"

#define POINTWISE(NAME, FUNCTION)                                                                                    \
    static void NAME(float *y, const float *x, int n) {                                                              \
        int i = 0;                                                                                                   \
        for (; n - i >= LANES; i += LANES) store(y + i, FUNCTION(load(x + i)));                                      \
        if (i < n) store_some(y + i, FUNCTION(load_some(x + i, n - i)), n - i);                                      \
    }

POINTWISE(elu, elu_of)
POINTWISE(gelu, gelu_of)

static void gate(float *y, const float *x, int width) {
    int i = 0;
    for (; width - i >= LANES; i += LANES) store(y + i, silu_of(load(x + i)) * load(x + width + i));
    if (i < width)
        store_some(y + i, silu_of(load_some(x + i, width - i)) * load_some(x + width + i, width - i), width - i);
}

INLINE lanes part(const float *x, int i, int n) { return n - i >= LANES ? load(x + i) : load_some(x + i, n - i); }

INLINE void put(float *y, int i, int n, lanes value) {
    if (n - i >= LANES)
        store(y + i, value);
    else
        store_some(y + i, value, n - i);
}

static void rms_norm(float *y, const float *x, const float *alpha, int n, float epsilon) {
    lanes squares = {0};
    for (int i = 0; i < n; i += LANES) squares += part(x, i, n) * part(x, i, n);
    const float scale = 1.0f / sqrtf(epsilon + sum_of(squares) / (float)n);
    for (int i = 0; i < n; i += LANES) put(y, i, n, part(x, i, n) * (part(alpha, i, n) * scale));
}

static void layer_norm(float *y, const float *x, const float *weight, const float *bias, int n, float epsilon) {
    lanes sum = {0}, squares = {0};
    for (int i = 0; i < n; i += LANES) sum += part(x, i, n);
    const float mean = sum_of(sum) / (float)n;
    for (int i = 0; i < n; i += LANES) {
        lanes d = n - i >= LANES ? load(x + i) - mean : load_some(x + i, n - i) - mean;
        if (n - i < LANES) {
            float kept[LANES] = {0};
            store_some(kept, d, n - i);
            d = load(kept);
        }
        squares += d * d;
    }
    const float scale = 1.0f / sqrtf(sum_of(squares) / (float)n + epsilon);
    for (int i = 0; i < n; i += LANES)
        put(y, i, n, (part(x, i, n) - mean) * scale * part(weight, i, n) + part(bias, i, n));
}

/* A table's row, added or put. A negative token is no token: nothing is added, and zeros are put. */
static void embed(float *y, const void *table, int bf16, int token, int n, int add) {
    if (token < 0) {
        if (!add) memset(y, 0, sizeof(float) * (size_t)n);
        return;
    }
    for (int i = 0; i < n; i++) {
        const int64_t at = (int64_t)token * n + i;
        const float value = bf16 ? from_bf16(((const uint16_t *)table)[at]) : ((const float *)table)[at];
        y[i] = add ? y[i] + value : value;
    }
}

/* The nearest of `bins` centroids of `n` numbers, the first where two are as near. `panels` holds them as
 * [bins / 16][n][16], filled up with centroids that are far away; `centroids` as [bins][n]. */
static int quantise(float *x, const float *panels, const float *centroids, int n, int bins) {
    float least_distance = FLT_MAX;
    int nearest = 0;
    for (int first = 0; first < bins; first += LANES) {
        lanes distance = {0};
        const float *panel = panels + (int64_t)first * n;
        for (int i = 0; i < n; i++) {
            const lanes d = every(x[i]) - load(panel + (int64_t)i * LANES);
            distance += d * d;
        }
        float candidates[LANES];
        store(candidates, distance);
        for (int j = 0; j < LANES && first + j < bins; j++)
            if (candidates[j] < least_distance) least_distance = candidates[j], nearest = first + j;
    }
    for (int i = 0; i < n; i++) x[i] -= centroids[(int64_t)nearest * n + i];
    return nearest;
}

#endif
