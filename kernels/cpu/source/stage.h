/* Putting an adapter's part where products read it, outside the interpreter's lock and in one pass. */
#ifndef DUOLOGUE_STAGE_H
#define DUOLOGUE_STAGE_H

#include "vector.h"

/* `w` [out][in] times `scale` (one number, or `scales` one for each output) into panels [out / 16][in][16], filled up
 * with zeros. Returns whether any number of `w` is not zero. */
int stage_panels(const float *w, int out, int in, const float *scales, float scale, float *to) {
    uint32_t bits = 0;
    for (int first = 0; first < out; first += LANES) {
        const int left = out - first < LANES ? out - first : LANES;
        for (int lane = 0; lane < LANES; lane++) {
            if (lane >= left) {
                for (int i = 0; i < in; i++) to[i * LANES + lane] = 0.0f;
                continue;
            }
            const float *from = w + (int64_t)(first + lane) * in;
            const float by = scales ? scales[first + lane] : scale;
            for (int i = 0; i < in; i++) {
                uint32_t x;
                memcpy(&x, from + i, sizeof x);
                bits |= x << 1; /* -0 is zero */
                to[i * LANES + lane] = from[i] * by;
            }
        }
        to += (int64_t)in * LANES;
    }
    return bits != 0;
}

#endif
