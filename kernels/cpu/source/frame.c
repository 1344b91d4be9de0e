/* One frame of many conversations on a CPU: hear, think, speak, in one call without the interpreter.
 *
 * `frame_step` runs four programs (see program.h) over the rows it is given, and between them moves tokens through
 * the delayed grid as `server.engine.columns` describes it. Rows do not meet anywhere: several threads may run
 * `frame_step` at once on one model, with different rows. It allocates nothing and cannot fail.
 *
 * Compiled when it is first needed: see kernels/cpu/build.py. */
#include <time.h>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include "attention.h"
#include "layers.h"
#include "matmul.h"
#include "opus.h"
#include "pick.h"
#include "program.h"
#include "stage.h"

#define NOTHING (-2)
#define LOUDEST 16.0f

static float *floats_of(const model *m, int row) { return m->memory + (int64_t)row * m->row_floats; }

static int32_t *tokens_of(const model *m, int row, int which) {
    return m->tokens + ((int64_t)row * 4 + which) * m->codebooks;
}

static int64_t *counters_of(const model *m, int row) { return m->counters + (int64_t)row * COUNTERS; }

static int32_t *place_in_ring(const model *m, int row, int codebook, int64_t position) {
    return m->token_ring + ((int64_t)row * m->codebooks + codebook) * m->ring + position % m->ring;
}

/* The column that is read: tables of `in` numbers for each codebook, text first. */
static void read_column(const op *o, float *y, const int32_t *column, int codebooks) {
    const void *const *tables = o->w;
    for (int k = 1; k < codebooks; k++) embed(y, tables[k], o->bf16, column[k], o->in, k > 1);
    embed(y, tables[0], o->bf16, column[0], o->in, codebooks > 1);
}

static void pick_token(const op *o, const model *m, int row, float *f) {
    sampling *how = m->how + row;
    const int64_t step = counters_of(m, row)[STEPS];
    int32_t *said = tokens_of(m, row, SAID);
    const int32_t *dictated = m->dictated + (int64_t)row * (m->codebooks + 1);
    if (o->index == 0)
        said[0] = pick_text(f + o->x, f + o->y, o->in, m, how, step, dictated[0], dictated[m->codebooks],
                            m->logprob_ring + (int64_t)row * m->ring + (step + 1) % m->ring);
    else if (dictated[o->index] != FREE)
        said[o->index] = dictated[o->index];
    else
        said[o->index] = pick_audio(f + o->x, f + o->y, o->in, how, step, o->index);
}

/* The operations that treat one row after another. */
static void one_row(const op *o, const batch *b, int row) {
    const model *m = b->m;
    float *f = floats_of(m, row), *x = f + o->x, *y = f + o->y;
    const int counts = o->code == OP_ROPE || o->code == OP_ATTEND;
    const int64_t first = counts && o->index >= 0 ? counters_of(m, row)[o->index] * o->times : 0;
    switch (o->code) {
    case OP_ELU:
        elu(y, x, o->in);
        break;
    case OP_GELU:
        gelu(y, x, o->in);
        break;
    case OP_GATE:
        for (int t = 0; t < o->times; t++) gate(y + t * o->y_stride, x + t * o->x_stride, o->out);
        break;
    case OP_RMS_NORM:
        for (int t = 0; t < o->times; t++)
            rms_norm(y + t * o->y_stride, x + t * o->x_stride, o->w, o->in, (float)o->scale);
        break;
    case OP_LAYER_NORM:
        for (int t = 0; t < o->times; t++)
            layer_norm(y + t * o->y_stride, x + t * o->x_stride, o->w, o->w2, o->in, (float)o->scale);
        break;
    case OP_ROPE:
        rope(y, o->w, first, o->times, o->in);
        break;
    case OP_ATTEND:
        attend(x, y, f + o->ring, o->table < 0 ? NULL : f + o->table, o->index < 0 ? o->position : first, o->times,
               o->out, o->in, o->capacity, o->bf16);
        break;
    case OP_SHIFT:
        memmove(x, x + o->x_stride, sizeof(float) * (size_t)o->in);
        break;
    case OP_REPLICATE:
        if (counters_of(m, row)[o->index] == 0)
            for (int t = 0; t < o->times; t++) memcpy(x + t * o->in, x + o->times * o->in, sizeof(float) * (size_t)o->in);
        break;
    case OP_EMBED:
        embed(y, o->w, o->bf16, tokens_of(m, row, o->which)[o->index], o->in, o->add);
        break;
    case OP_COLUMN:
        read_column(o, y, tokens_of(m, row, READ), m->codebooks);
        break;
    case OP_QUANTISE:
        tokens_of(m, row, HEARD_TOKENS)[o->index] = quantise(x, o->w, o->w2, o->in, o->out);
        break;
    case OP_PICK:
        pick_token(o, m, row, f);
        break;
    case OP_HEAR:
        if (b->damaged[row])
            memset(y, 0, sizeof(float) * (size_t)o->in);
        else
            memcpy(y, b->pcm_in + (int64_t)row * m->frame_size, sizeof(float) * (size_t)o->in);
        break;
    case OP_SAY:
        memcpy(b->pcm_out + (int64_t)row * m->frame_size, x, sizeof(float) * (size_t)o->in);
        break;
    }
}

static void run(const batch *b, int which, const int32_t *rows, int n) {
    const model *m = b->m;
    float *base[n];
    for (int i = 0; i < n; i++) base[i] = floats_of(m, rows[i]);
    for (const op *o = m->program[which], *end = o + m->ops[which]; o < end; o++)
        if (o->code == OP_MATMUL) {
            matmul(o, base, n);
            if (o->site >= 0) adapt(o, m, rows, base, n);
        } else {
            for (int i = 0; i < n; i++) one_row(o, b, rows[i]);
        }
}

/* Write what the caller said into the grid, and take out what the model reads now. */
static void prepare(const model *m, int row) {
    const int64_t step = counters_of(m, row)[STEPS];
    const int32_t *heard = tokens_of(m, row, HEARD_TOKENS);
    int32_t *read = tokens_of(m, row, READ);
    for (int u = 0; u < m->user_codebooks && step > 0; u++) {
        const int k = 1 + m->dep_q + u;
        *place_in_ring(m, row, k, step + m->delays[k]) = heard[u];
    }
    for (int k = 0; k < m->codebooks; k++)
        read[k] = step <= m->delays[k] ? (k ? m->audio_start : m->text_start) : *place_in_ring(m, row, k, step);
}

/* Write what the model said into the grid, step on, and take out the newest whole column. Returns whether there is
 * one. */
static int finish(const model *m, int row) {
    int64_t *counters = counters_of(m, row);
    const int32_t *said = tokens_of(m, row, SAID);
    int32_t *column = tokens_of(m, row, COMPLETE);
    const int64_t step = ++counters[STEPS];
    for (int k = 0; k < 1 + m->dep_q; k++) *place_in_ring(m, row, k, step) = said[k];
    remember(m->how + row, said[0], m);
    if (step <= m->max_delay) return 0;
    for (int k = 0; k < m->codebooks; k++)
        column[k] = *place_in_ring(m, row, k, step - m->max_delay + m->delays[k]);
    return 1;
}

static void run_in_groups(const batch *b, int which, const int32_t *rows, int n) {
    for (int i = 0; i < n; i += b->m->group) run(b, which, rows + i, n - i < b->m->group ? n - i : b->m->group);
}

/* Samples are meant to lie within -1 and 1. Beyond sixteen the sender is broken, not loud; a NaN is beyond all. */
static int is_damaged(const float *sound, int n) {
    lanes_i good = every(0.0f) == every(0.0f);
    int i = 0;
    for (; n - i >= LANES; i += LANES) good &= (load(sound + i) <= LOUDEST) & (load(sound + i) >= -LOUDEST);
    int bad = 0;
    for (; i < n; i++) bad |= !(fabsf(sound[i]) <= LOUDEST);
    for (int j = 0; j < LANES; j++) bad |= !good[j];
    return bad;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* One frame for the `n` rows (at least one) named in `rows`. `pcm_in` and `pcm_out` are [rows of the model][frame_size]; `columns`
 * is [rows of the model][codebooks] and `logprobs` [rows of the model], all of which are written for these rows
 * only, with NOTHING, NaN and no sound where nothing is out. `damaged` [rows of the model] says whose sound was none and
 * was heard as silence. `seconds` takes the times of the four programs. */
void frame_step(const model *m, const int32_t *rows, int n, const float *pcm_in, float *pcm_out, int64_t *columns,
                float *logprobs, uint8_t *damaged, double *seconds) {
#ifdef __SSE__
    const unsigned int mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* denormals are zero: they make convolutions many times slower */
#endif
    const batch b = {m, pcm_in, pcm_out, damaged};
    int32_t some[n];
    int count = 0;
    double began = now(), ended;
    for (int i = 0; i < n; i++) {
        damaged[rows[i]] = (uint8_t)is_damaged(pcm_in + (int64_t)rows[i] * m->frame_size, m->frame_size);
        if (counters_of(m, rows[i])[STEPS] > 0) some[count++] = rows[i];
    }
    run_in_groups(&b, 0, some, count);
    for (int i = 0; i < count; i++) counters_of(m, some[i])[HEARD]++;
    for (int i = 0; i < n; i++) prepare(m, rows[i]);
    ended = now(), seconds[0] = ended - began, began = ended;
    run(&b, 1, rows, n);
    ended = now(), seconds[1] = ended - began, began = ended;
    run(&b, 2, rows, n);
    count = 0;
    for (int i = 0; i < n; i++) {
        const int row = rows[i], out = finish(m, row);
        const int32_t *column = tokens_of(m, row, COMPLETE);
        for (int k = 0; k < m->codebooks; k++)
            columns[(int64_t)row * m->codebooks + k] = out ? column[k] : NOTHING;
        const int64_t frame = counters_of(m, row)[STEPS] - m->max_delay;
        logprobs[row] = out ? m->logprob_ring[(int64_t)row * m->ring + frame % m->ring] : NAN;
        if (out) some[count++] = row;
    }
    ended = now(), seconds[2] = ended - began, began = ended;
    run_in_groups(&b, 3, some, count);
    for (int i = 0; i < count; i++) counters_of(m, some[i])[SPOKEN]++;
    seconds[3] = now() - began;
#ifdef __SSE__
    _mm_setcsr(mode);
#endif
}

/* Sizes and places that `program.py` compares with its own. */
void frame_layout(int64_t *sizes) {
    sizes[0] = sizeof(op);
    sizes[1] = sizeof(sampling);
    sizes[2] = sizeof(model);
    sizes[3] = OP_SAY;
    sizes[4] = COUNTERS;
    sizes[5] = sizeof(lora);
    sizes[6] = HIGHEST_RANK;
}
