/* The pointwise part of a ConvLSTM step, forward and backward, one pass over memory each.
 *
 * Compiled once on the user's machine by compiled.py, twice: ELEMENT_BF16 makes features and gates bfloat16. The cell
 * state and all arithmetic are float32, sums over the grid float64. Never build this with -ffast-math: NaN has to
 * propagate, and saturated gates (inputs of 1e4, 1e30, infinity) have to stay 0 and 1.
 *
 * Arrays are channels_last: row r of a sample is one grid point. A row of gates is i, f, g, o of K channels each, or,
 * where the cell state before is zero, i, g, o: three blocks, no forget gate.
 */
#include <stdint.h>
#include <string.h>

#define MOST_CHANNELS 512     /* K; kept in step with compiled.py */
#define ROWS_PER_FLUSH 64     /* rows summed in float32 before the sum is added to a float64 one */
#define INLINE static inline __attribute__((always_inline))

#ifdef ELEMENT_BF16
typedef uint16_t element;
INLINE float load(element stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
INLINE element rounded(float value) { /* to nearest, ties to even; a NaN must not round to infinity */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return (element)(value != value ? 0x7FC0u : nearest);
}
#else
typedef float element;
INLINE float load(element stored) { return stored; }
INLINE element rounded(float value) { return value; }
#endif

struct step {
    int64_t samples, rows, channels; /* B, H * W, K */
    int64_t chunks;                  /* pieces that each sample is cut into: the unit of work of a thread */
    int64_t next;                    /* the next piece that nobody has taken */
    element *gates;                  /* from the input; afterwards the sum with those from the hidden state */
    const element *hidden_gates;     /* or null */
    const float *c_before;           /* or null: zeros, and gates of three blocks */
    float *c;
    element *h;
    const float *inverse_deviation, *minus_mean_over_deviation; /* [samples, gates], or null: no normalisation */
    const float *gamma, *beta;                                  /* [gates] */
    const element *grad_h, *grad_h_recurrent;                   /* or null: zeros */
    const float *grad_c;                                        /* or null: zeros */
    float *grad_c_before;                                       /* or null: not wanted; may be grad_c */
    element *grad_gates;
    const float *on_grad, *on_gates, *constant; /* [samples, gates]: the backward pass of the normalisation */
    const float *origin;                        /* [samples, gates]: subtracted before moments are summed */
    double *sums;                               /* [samples * chunks, 2, gates] */
    int64_t keep;                               /* whether the summed gates are written back */
    const float *planes;                        /* features of contiguous grids, to be laid out as channels_last h */
    int64_t sample_stride, plane_stride;
};

/* exp, accurate to 1e-7 and clamped so that no result is infinite or subnormal. Comparisons with a NaN are false, so
 * it passes both clamps, and scaling is a multiplication, which keeps it. Polynomial: Cephes' expf. */
INLINE float exponential(float x) {
    x = x > 87.0f ? 87.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the rounded integer */
    float n = shifted - 12582912.0f;
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits << 23) + 0x3F800000u;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

/* tanh as 2 sigmoid(2x) - 1, which loses relative accuracy near zero: there Cephes' polynomial. */
INLINE float hyperbolic_tangent(float x) {
    float size = x < 0.0f ? -x : x;
    float far = 1.0f - 2.0f / (1.0f + exponential(2.0f * x));
    float z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    float near = p * z * x + x;
    return size < 0.625f ? near : far;
}

INLINE void flush(double *restrict total, float *restrict part, int64_t count) {
    for (int64_t k = 0; k < count; k++) {
        total[k] += part[k];
        part[k] = 0.0f;
    }
}

/* Sums of v - origin and of its square; the origin is the sample's first row, so that a large mean cancels nothing. */
INLINE void moments_of(struct step *s, int64_t sample, int64_t begin, int64_t end, double *restrict sums, int has_hidden) {
    const int64_t count = (s->c_before ? 4 : 3) * s->channels;
    const int64_t base = sample * s->rows;
    const float *restrict origin = s->origin + sample * count;
    float part[2][4 * MOST_CHANNELS];
    memset(part, 0, sizeof part);
    for (int64_t row = begin; row < end; row++) {
        element *restrict gates = s->gates + (base + row) * count;
        const element *restrict hidden = s->hidden_gates + (has_hidden ? (base + row) * count : 0);
        for (int64_t k = 0; k < count; k++) {
            element stored = gates[k];
            if (has_hidden) {
                stored = rounded(load(stored) + load(hidden[k]));
                gates[k] = stored;
            }
            float v = load(stored) - origin[k];
            part[0][k] += v;
            part[1][k] += v * v;
        }
        if ((row - begin) % ROWS_PER_FLUSH == ROWS_PER_FLUSH - 1 || row == end - 1) {
            flush(sums, part[0], count);
            flush(sums + count, part[1], count);
        }
    }
}

INLINE void advance_rows(
    struct step *s, int64_t sample, int64_t begin, int64_t end, int has_state, int has_hidden, int has_norm) {
    const int64_t K = s->channels, blocks = has_state ? 4 : 3, count = blocks * K, base = sample * s->rows;
    const int64_t G = (blocks - 2) * K, O = (blocks - 1) * K;
    const int keep = (int)s->keep;
    const float *restrict r = s->inverse_deviation + (has_norm ? sample * count : 0);
    const float *restrict m = s->minus_mean_over_deviation + (has_norm ? sample * count : 0);
    const float *restrict gamma = s->gamma, *restrict beta = s->beta;
    for (int64_t row = base + begin; row < base + end; row++) {
        element *restrict gates = s->gates + row * count;
        const element *restrict hidden = s->hidden_gates + (has_hidden ? row * count : 0);
        const float *restrict c_before = s->c_before + (has_state ? row * K : 0);
        float *restrict c_after = s->c + row * K;
        element *restrict h = s->h + row * K;
#pragma GCC ivdep
        for (int64_t k = 0; k < K; k++) {
            float i = load(gates[k]), f = 0.0f, g = load(gates[G + k]), o = load(gates[O + k]);
            if (has_state) f = load(gates[K + k]);
            if (has_hidden) {
                i += load(hidden[k]);
                if (has_state) f += load(hidden[K + k]);
                g += load(hidden[G + k]);
                o += load(hidden[O + k]);
                if (keep) {
                    gates[k] = rounded(i);
                    if (has_state) gates[K + k] = rounded(f);
                    gates[G + k] = rounded(g);
                    gates[O + k] = rounded(o);
                }
            }
            if (has_norm) {
                i = (i * r[k] + m[k]) * gamma[k] + beta[k];
                if (has_state) f = (f * r[K + k] + m[K + k]) * gamma[K + k] + beta[K + k];
                g = (g * r[G + k] + m[G + k]) * gamma[G + k] + beta[G + k];
                o = (o * r[O + k] + m[O + k]) * gamma[O + k] + beta[O + k];
            }
            float c = sigmoid(i) * hyperbolic_tangent(g);
            if (has_state) c += sigmoid(f) * c_before[k];
            c_after[k] = c;
            h[k] = rounded(sigmoid(o) * hyperbolic_tangent(c));
        }
    }
}

INLINE void retreat_rows(struct step *s, int64_t sample, int64_t begin, int64_t end, double *restrict sums,
                         int has_state, int has_norm, int has_recurrent) {
    const int64_t K = s->channels, blocks = has_state ? 4 : 3, count = blocks * K, base = sample * s->rows;
    const int64_t G = (blocks - 2) * K, O = (blocks - 1) * K;
    const int has_h = s->grad_h != 0, has_c = s->grad_c != 0, wants_c = s->grad_c_before != 0;
    const float *restrict r = s->inverse_deviation + (has_norm ? sample * count : 0);
    const float *restrict m = s->minus_mean_over_deviation + (has_norm ? sample * count : 0);
    const float *restrict gamma = s->gamma, *restrict beta = s->beta;
    float part[2][4 * MOST_CHANNELS];
    static const element none_h[MOST_CHANNELS];
    static const float none_c[MOST_CHANNELS];
    float unwanted[MOST_CHANNELS];
    memset(part, 0, sizeof part);
    for (int64_t index = begin; index < end; index++) {
        const int64_t row = base + index;
        const element *gates = s->gates + row * count;   /* may be grad_gates: each point is read before written */
        element *d = s->grad_gates + row * count;
        const float *restrict c_before = s->c_before + (has_state ? row * K : 0);
        const element *restrict grad_h = has_h ? s->grad_h + row * K : none_h;
        const element *restrict recurrent = has_recurrent ? s->grad_h_recurrent + row * K : none_h;
        const float *grad_c = has_c ? s->grad_c + row * K : none_c;
        float *grad_c_before = wants_c ? s->grad_c_before + row * K : unwanted;
        float *restrict p = part[0], *restrict q = part[1];
#pragma GCC ivdep
        for (int64_t k = 0; k < K; k++) {
            float i = load(gates[k]), f = 0.0f, g = load(gates[G + k]), o = load(gates[O + k]);
            float ni = 0.0f, nf = 0.0f, ng = 0.0f, no = 0.0f;
            if (has_state) f = load(gates[K + k]);
            if (has_norm) {
                ni = i * r[k] + m[k];
                i = ni * gamma[k] + beta[k];
                if (has_state) {
                    nf = f * r[K + k] + m[K + k];
                    f = nf * gamma[K + k] + beta[K + k];
                }
                ng = g * r[G + k] + m[G + k];
                g = ng * gamma[G + k] + beta[G + k];
                no = o * r[O + k] + m[O + k];
                o = no * gamma[O + k] + beta[O + k];
            }
            i = sigmoid(i);
            g = hyperbolic_tangent(g);
            o = sigmoid(o);
            float c = i * g, before = 0.0f;
            if (has_state) {
                f = sigmoid(f);
                before = c_before[k];
                c += f * before;
            }
            float tanh_c = hyperbolic_tangent(c);
            float dh = load(grad_h[k]);
            if (has_recurrent) dh += load(recurrent[k]);
            float dc = grad_c[k] + dh * o * (1.0f - tanh_c * tanh_c);
            float di = dc * g * i * (1.0f - i);
            float dg = dc * i * (1.0f - g * g);
            float do_ = dh * tanh_c * o * (1.0f - o);
            d[k] = rounded(di);
            d[G + k] = rounded(dg);
            d[O + k] = rounded(do_);
            p[k] += di;
            p[G + k] += dg;
            p[O + k] += do_;
            if (has_norm) {
                q[k] += di * ni;
                q[G + k] += dg * ng;
                q[O + k] += do_ * no;
            }
            if (has_state) {
                float df = dc * before * f * (1.0f - f);
                d[K + k] = rounded(df);
                p[K + k] += df;
                if (has_norm) q[K + k] += df * nf;
                grad_c_before[k] = dc * f;
            }
        }
        if ((index - begin) % ROWS_PER_FLUSH == ROWS_PER_FLUSH - 1 || index == end - 1) {
            flush(sums, part[0], count);
            if (has_norm) flush(sums + count, part[1], count);
        }
    }
}

/* The gradient passes the normalisation: on_grad * grad + on_gates * gates + constant, written over the gates. */
INLINE void normalise_back(struct step *s, int64_t sample, int64_t begin, int64_t end, double *restrict sums) {
    const int64_t count = (s->c_before ? 4 : 3) * s->channels, base = sample * s->rows;
    const float *restrict on_grad = s->on_grad + sample * count, *restrict on_gates = s->on_gates + sample * count;
    const float *restrict constant = s->constant + sample * count;
    float part[4 * MOST_CHANNELS];
    memset(part, 0, sizeof part);
    for (int64_t row = begin; row < end; row++) {
        element *restrict gates = s->gates + (base + row) * count;
        const element *restrict grad = s->grad_gates + (base + row) * count;
        for (int64_t k = 0; k < count; k++) {
            float d = on_grad[k] * load(grad[k]) + on_gates[k] * load(gates[k]) + constant[k];
            gates[k] = rounded(d);
            part[k] += d;
        }
        if ((row - begin) % ROWS_PER_FLUSH == ROWS_PER_FLUSH - 1 || row == end - 1) flush(sums, part, count);
    }
}

/* From planes to channels_last: long runs of a few planes at a time, for the prefetcher and the first-level cache. */
#define TILE_ROWS 128
#define TILE_CHANNELS 16
static void lay_out_rows(struct step *s, int64_t sample, int64_t begin, int64_t end) {
    const int64_t K = s->channels;
    const float *planes = s->planes + sample * s->sample_stride;
    element *h = s->h + sample * s->rows * K;
    float tile[TILE_ROWS][TILE_CHANNELS];
    for (int64_t row = begin; row < end; row += TILE_ROWS) {
        const int64_t rows = end - row < TILE_ROWS ? end - row : TILE_ROWS;
        for (int64_t k = 0; k < K; k += TILE_CHANNELS) {
            const int64_t channels = K - k < TILE_CHANNELS ? K - k : TILE_CHANNELS;
            for (int64_t j = 0; j < channels; j++) {
                const float *restrict plane = planes + (k + j) * s->plane_stride + row;
                for (int64_t i = 0; i < rows; i++) tile[i][j] = plane[i];
            }
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < channels; j++) h[(row + i) * K + k + j] = rounded(tile[i][j]);
        }
    }
}

/* Threads take pieces as they come free: on busy machines an even split would wait for the slowest core. */
#define EACH_PIECE(call)                                                                            \
    struct step *s = argument;                                                                      \
    const int64_t pieces = s->samples * s->chunks, gates = (s->c_before ? 4 : 3) * s->channels;     \
    for (int64_t piece; (piece = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < pieces;) {    \
        const int64_t sample = piece / s->chunks, chunk = piece % s->chunks;                        \
        const int64_t begin = s->rows * chunk / s->chunks, end = s->rows * (chunk + 1) / s->chunks; \
        double *sums = s->sums ? s->sums + piece * 2 * gates : 0;                                   \
        (void)sums;                                                                                 \
        call                                                                                        \
    }

static void moments_worker(void *argument) {
    EACH_PIECE(if (s->hidden_gates) moments_of(s, sample, begin, end, sums, 1);
               else moments_of(s, sample, begin, end, sums, 0);)
}

static void advance_worker(void *argument) {
    EACH_PIECE(
        if (s->gamma) {
            if (s->c_before) advance_rows(s, sample, begin, end, 1, 0, 1);
            else advance_rows(s, sample, begin, end, 0, 0, 1);
        } else if (!s->c_before) advance_rows(s, sample, begin, end, 0, 0, 0);
        else if (s->hidden_gates) advance_rows(s, sample, begin, end, 1, 1, 0);
        else advance_rows(s, sample, begin, end, 1, 0, 0);)
}

static void retreat_worker(void *argument) {
    EACH_PIECE(
        if (s->gamma) {
            if (s->c_before) retreat_rows(s, sample, begin, end, sums, 1, 1, s->grad_h_recurrent != 0);
            else retreat_rows(s, sample, begin, end, sums, 0, 1, s->grad_h_recurrent != 0);
        } else if (s->c_before) {
            if (s->grad_h_recurrent) retreat_rows(s, sample, begin, end, sums, 1, 0, 1);
            else retreat_rows(s, sample, begin, end, sums, 1, 0, 0);
        } else if (s->grad_h_recurrent) retreat_rows(s, sample, begin, end, sums, 0, 0, 1);
        else retreat_rows(s, sample, begin, end, sums, 0, 0, 0);)
}

static void normalise_back_worker(void *argument) { EACH_PIECE(normalise_back(s, sample, begin, end, sums);) }

static void lay_out_worker(void *argument) {
    EACH_PIECE((void)gates; lay_out_rows(s, sample, begin, end);)
}

/* GOMP_parallel of the OpenMP runtime that PyTorch computes with, or null for one thread. Handing over the function
 * instead of linking one keeps a second runtime, whose threads would fight the first's, out of the process. */
typedef void (*fork_join)(void (*worker)(void *), void *argument, unsigned threads, unsigned flags);

static void run(void (*worker)(void *), struct step *s, fork_join fork, int threads) {
    s->next = 0;
    if (fork && threads > 1) fork(worker, s, (unsigned)threads, 0);
    else worker(s);
}

void convlstm_lay_out(struct step *s, fork_join fork, int threads) { run(lay_out_worker, s, fork, threads); }
void convlstm_moments(struct step *s, fork_join fork, int threads) { run(moments_worker, s, fork, threads); }
void convlstm_advance(struct step *s, fork_join fork, int threads) { run(advance_worker, s, fork, threads); }
void convlstm_retreat(struct step *s, fork_join fork, int threads) { run(retreat_worker, s, fork, threads); }
void convlstm_normalise_back(struct step *s, fork_join fork, int threads) {
    run(normalise_back_worker, s, fork, threads);
}
