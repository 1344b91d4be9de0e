/* From logits to a token, by a row's own parameters and noise: the same steps as `server.engine.sampling`.
 *
 * Noise is Philox4x32-10 (Salmon et al., SC 2011) of (token / 4, codebook, frame, 0) under the row's seed, made
 * Gumbel: it depends on nothing else, so a row says the same in any company. */
#ifndef DUOLOGUE_PICK_H
#define DUOLOGUE_PICK_H

#include <stdlib.h>

#include "program.h"
#include "vector.h"

INLINE void philox_round(lanes_u c[4], uint32_t k0, uint32_t k1) {
    lanes_u high0, high2;
    for (int i = 0; i < LANES; i++) {
        high0[i] = (uint32_t)(((uint64_t)0xD2511F53u * c[0][i]) >> 32);
        high2[i] = (uint32_t)(((uint64_t)0xCD9E8D57u * c[2][i]) >> 32);
    }
    const lanes_u low0 = c[0] * 0xD2511F53u, low2 = c[2] * 0xCD9E8D57u;
    c[0] = high2 ^ c[1] ^ k0;
    c[1] = low2;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
}

/* Standard Gumbel noise for `n` tokens; `noise` has room for the next multiple of 64. */
static void gumbel(float *noise, int n, uint64_t seed, int64_t frame, int codebook) {
    for (int first = 0; first < n; first += 4 * LANES) {
        lanes_u c[4] = {{0}};
        for (int i = 0; i < LANES; i++) c[0][i] = (uint32_t)(first / 4 + i);
        c[1] = (lanes_u){0} + (uint32_t)codebook;
        c[2] = (lanes_u){0} + (uint32_t)frame;
        uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
        for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) philox_round(c, k0, k1);
        for (int word = 0; word < 4; word++) {
            /* 23 bits and a half: strictly between 0 and 1, and exact. */
            const lanes u = (__builtin_convertvector((lanes_i)(c[word] >> 9), lanes) + 0.5f) * 0x1p-23f;
            const lanes g = -log_of(-log_of(u));
            for (int i = 0; i < LANES; i++) noise[first + 4 * i + word] = g[i];
        }
    }
}

/* The k-th largest of n numbers, which are left in another order. */
static float kth_largest(float *x, int n, int k) {
    int low = 0, high = n - 1;
    const int want = k - 1;
    while (low < high) {
        const float pivot = x[low + (high - low) / 2];
        int i = low, j = high;
        while (i <= j) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i <= j) {
                const float swap = x[i];
                x[i++] = x[j];
                x[j--] = swap;
            }
        }
        if (want <= j)
            high = j;
        else if (want >= i)
            low = i;
        else
            return x[want];
    }
    return x[want];
}

static int argmax(const float *x, int n) {
    int best = 0;
    for (int i = 1; i < n; i++)
        if (x[i] > x[best]) best = i;
    return best;
}

/* Natural log-softmax of one token. */
static float logprob_of(const float *logits, int n, int token) {
    float highest = logits[0];
    for (int i = 1; i < n; i++) highest = logits[i] > highest ? logits[i] : highest;
    double total = 0.0;
    int i = 0;
    for (; n - i >= LANES; i += LANES) total += (double)sum_of(exp_of(load(logits + i) - highest));
    for (; i < n; i++) total += (double)expf(logits[i] - highest);
    return (float)((double)(logits[token] - highest) - log(total));
}

/* Overwrites `x`, and the same number of floats (rounded up to 64) after `scratch`. */
static int pick(float *x, float *scratch, int n, const sampling *how, int audio, int64_t frame, int codebook) {
    if (how->greedy[audio]) return argmax(x, n);
    const int top_k = how->top_k[audio];
    float threshold = -INFINITY;
    if (top_k < n) {
        memcpy(scratch, x, sizeof(float) * (size_t)n);
        threshold = kth_largest(scratch, n, top_k);
    }
    gumbel(scratch, n, how->seed, frame, codebook);
    for (int i = 0; i < n; i++) scratch[i] = x[i] >= threshold ? x[i] + scratch[i] : -INFINITY;
    return argmax(scratch, n);
}

/* Keskar et al. (CTRL): a token said lately has its logit divided, or multiplied where it is negative. */
static void punish(float *x, const sampling *how) {
    const int window = how->window < how->remembered ? how->window : how->remembered;
    for (int i = 0; i < window; i++) {
        const int token = how->recent[i];
        int seen = 0;
        for (int j = 0; j < i && !seen; j++) seen = how->recent[j] == token;
        if (!seen) x[token] = x[token] > 0 ? x[token] / how->penalty : x[token] * how->penalty;
    }
}

/* `token` and `word` are what is dictated, or FREE. */
static int pick_text(float *logits, float *scratch, int n, const model *m, const sampling *how, int64_t frame,
                     int token, int word, float *logprob) {
    float *const x = scratch, *const rest = scratch + n;
    if (token != FREE) {
        *logprob = logprob_of(logits, n, token);
        return token;
    }
    memcpy(x, logits, sizeof(float) * (size_t)n);
    punish(x, how);
    if (!how->greedy[0])
        for (int i = 0; i < n; i++) x[i] /= how->temperature[0];
    x[m->pad_id] += how->pad_mult;
    token = pick(x, rest, n, how, 0, frame, 0);
    if (word != FREE && token != m->pad_id && token != m->end_pad_id) token = word;
    *logprob = logprob_of(logits, n, token);
    return token;
}

static int pick_audio(float *logits, float *scratch, int n, const sampling *how, int64_t frame, int codebook) {
    if (!how->greedy[1])
        for (int i = 0; i < n; i++) logits[i] /= how->temperature[1];
    return pick(logits, scratch, n, how, 1, frame, codebook);
}

static void remember(sampling *how, int token, const model *m) {
    const int most_remembered = (int)(sizeof how->recent / sizeof *how->recent);
    if (how->window == 0 || token == m->pad_id || token == m->end_pad_id) return;
    memmove(how->recent + 1, how->recent, sizeof how->recent - sizeof *how->recent);
    how->recent[0] = token;
    if (how->remembered < most_remembered) how->remembered++;
}

#endif
