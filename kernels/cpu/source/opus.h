/* The sound of many streams as Opus packets, in one call: change of rate, then libopus.
 *
 * libopus' function comes by its address, so that nothing is linked against it. Streams do not meet: what one gives
 * does not depend on its company, and one that libopus refuses leaves the others alone. */
#ifndef DUOLOGUE_OPUS_H
#define DUOLOGUE_OPUS_H

#include "vector.h"

#define STRETCH 128

typedef int (*opus_encode)(void *encoder, const float *pcm, int samples, uint8_t *packet, int32_t room);

/* As in opus.py. */
typedef struct {
    void *encoder;
    const float *pcm;   /* [given] at the source's rate */
    const float *taps;  /* [up][width], newest sample last, one row for each of `up` outputs */
    float *samples;     /* [width - 1 + given]: what the filter remembers, then this block */
    float *resampled;   /* [given * up / down] */
    uint8_t *packets;   /* [given * up / down / packet_samples][packet_bytes] */
    int32_t *sizes;     /* [given * up / down / packet_samples], libopus' error where it is negative */
    int32_t given, up, down, width, packet_samples, packet_bytes;
} opus_stream;

/* y[n * up] = sum over w of taps[w] x[n * down + w], each sum in the order of w. */
INLINE void one_phase(float *y, const float *x, const float *taps, int count, int width, int up, int down) {
    for (int first = 0; first < count; first += STRETCH) {
        const int some = count - first < STRETCH ? count - first : STRETCH;
        float sums[STRETCH] = {0};
        for (int w = 0; w < width; w++)
            for (int n = 0; n < some; n++) sums[n] += taps[w] * x[(first + n) * down + w];
        for (int n = 0; n < some; n++) y[(first + n) * up] = sums[n];
    }
}

static const float *resample(const opus_stream *s) {
    if (s->up == s->down) return s->pcm;
    const int past = s->width - 1, count = s->given / s->down;
    memcpy(s->samples + past, s->pcm, (size_t)s->given * sizeof *s->pcm);
    for (int phase = 0; phase < s->up; phase++) {
        const float *x = s->samples + phase * s->down / s->up, *taps = s->taps + phase * s->width;
        if (s->down == 1)
            one_phase(s->resampled + phase, x, taps, count, s->width, s->up, 1);
        else if (s->down == 2)
            one_phase(s->resampled + phase, x, taps, count, s->width, s->up, 2);
        else
            one_phase(s->resampled + phase, x, taps, count, s->width, s->up, s->down);
    }
    memmove(s->samples, s->samples + s->given, (size_t)past * sizeof *s->samples);
    return s->resampled;
}

/* Encode what every stream was given. After a packet that libopus refuses a stream is left where it is. */
void encode_streams(opus_encode encode, opus_stream *const *streams, int n) {
    for (int i = 0; i < n; i++) {
        const opus_stream *s = streams[i];
        const float *pcm = resample(s);
        const int packets = s->given / s->down * s->up / s->packet_samples;
        for (int p = 0; p < packets; p++) {
            s->sizes[p] = encode(s->encoder, pcm + (int64_t)p * s->packet_samples, s->packet_samples,
                                 s->packets + (int64_t)p * s->packet_bytes, s->packet_bytes);
            if (s->sizes[p] < 0) break;
        }
    }
}

#endif
