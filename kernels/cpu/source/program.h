/* What Python writes and C reads: one step as a list of operations over the rows' memory.
 *
 * A row (one caller's slot) has one block of floats: its state, its caches and its scratch space. An operation
 * names places in that block by their offset, so the same list serves every row, and rows never share a number.
 * The structures here have twins in `program.py`; `frame_layout` lets it check that they agree. */
#ifndef DUOLOGUE_PROGRAM_H
#define DUOLOGUE_PROGRAM_H

#include <stdint.h>

#define HIGHEST_RANK 128

enum {
    OP_MATMUL,    /* y[t] = w x[t] (+ bias) (+ y[t]): linear layers and convolutions alike */
    OP_ELU,       /* y = elu(x), n numbers */
    OP_GELU,      /* y = gelu(x), n numbers */
    OP_GATE,      /* y[t] = silu(first half of x[t]) * second half */
    OP_RMS_NORM,  /* y[t] = x[t] * w / sqrt(mean of squares + scale) */
    OP_LAYER_NORM,
    OP_ROPE,      /* y = cosines and sines of the row's next `times` positions */
    OP_ATTEND,    /* keys and values into the ring, then attention over what is valid */
    OP_SHIFT,     /* the last `n` numbers before x + stride become the first at x: a convolution's history */
    OP_REPLICATE, /* before a row's first frame: its history is its first sample again and again */
    OP_EMBED,     /* y = table[token] or y += table[token] */
    OP_COLUMN,    /* y = sum of the embeddings of the column that the model reads */
    OP_QUANTISE,  /* nearest centroid to x; x -= centroid */
    OP_PICK,      /* a token from logits */
    OP_HEAR,      /* y = the caller's sound */
    OP_SAY,       /* the model's sound = x */
};

enum { STEPS, HEARD, SPOKEN, COUNTERS };

typedef struct {
    int32_t code;
    int32_t times;       /* positions in one step */
    int32_t in, out;     /* widths */
    int32_t bf16;        /* weights, or what a ring keeps, are bfloat16, otherwise float32 */
    int32_t add;         /* add to y instead of replacing it */
    int32_t index;       /* which token, codebook or counter; -1: none */
    int32_t capacity;    /* of a ring */
    int32_t position;    /* of an attention without a counter */
    int32_t which;       /* of a row's lists of tokens */
    int32_t site;        /* of a product that adapters change; -1: none */
    int32_t unused;
    int64_t x, y;        /* offsets in floats */
    int64_t ring, table; /* of an attention: offsets of its ring and of its cosines, -1: none */
    int64_t x_stride, y_stride;
    const void *w, *w2;
    double scale;
} op;

/* What one adapter adds to one product: y += b (a x), `scale` being in b already. Panels of float32, as weights. */
typedef struct {
    const float *a, *b; /* NULL: nothing */
    int64_t rank;
} lora;

/* How a row turns logits into tokens. */
typedef struct {
    uint64_t seed;
    float temperature[2]; /* text, audio */
    float pad_mult, penalty;
    int32_t top_k[2];
    int32_t greedy[2];
    int32_t window; /* words that the penalty remembers; 0: no penalty */
    int32_t remembered;
    int32_t recent[256]; /* newest first */
} sampling;

typedef struct {
    int32_t frame_size;
    int32_t codebooks, dep_q, user_codebooks, max_delay, ring;
    int32_t text_start, audio_start, pad_id, end_pad_id;
    int32_t group; /* rows that the codec works on at a time, so that their sound stays in the cache */
    int64_t row_floats;
    int32_t ops[4]; /* how many: encode, temporal, depth, decode */
    const op *program[4];
    const int32_t *delays;   /* [codebooks] */
    float *memory;           /* [rows][row_floats] */
    int64_t *counters;       /* [rows][COUNTERS] */
    int32_t *token_ring;     /* [rows][codebooks][ring] */
    float *logprob_ring;     /* [rows][ring] */
    int32_t *tokens;         /* [rows][4][codebooks]: said, heard, read now, complete */
    sampling *how;           /* [rows] */
    const int32_t *dictated; /* [rows][1 + codebooks]: what a row must say, see below */
    const int32_t *adapter;  /* [rows]; 0 is the model as it was loaded */
    const lora *loras;       /* [adapters][sites] */
    int64_t sites;
} model;

enum { SAID, HEARD_TOKENS, READ, COMPLETE };

/* What is dictated to a row: tokens of codebooks 0 to dep_q that are said whatever the logits are; and, at the place
 * after all codebooks, the text token that is said instead of any word that the row itself would say now, so that what
 * is said is dictated and when it is said is not. FREE: nothing is. */
#define FREE (-1)

/* One call's own things: where the rows' sound is. */
typedef struct {
    const model *m;
    const float *pcm_in; /* [rows of the model][frame_size] */
    float *pcm_out;
    const uint8_t *damaged; /* [rows of the model] */
} batch;

#endif
