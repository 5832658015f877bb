/* The monotonic rational-quadratic spline and its gradient in float32: the formulas of spline.py for WIDTH events at a
   time, whose intermediate numbers never leave the processor. In the vector arithmetic that gcc and clang have for all.

   x (M, N); raw (M, P, N), `stride` numbers from one of M to the next; K bins, P = 3 K - 1. */

#include <stdint.h>
#include <string.h>

#ifndef WIDTH
#define WIDTH 4 /* numbers that one instruction takes */
#endif
#define INLINE static inline __attribute__((always_inline))
#define MOST 64 /* bins */
#define LOG2_E 1.44269504088896341f

typedef float V __attribute__((vector_size(4 * WIDTH)));
typedef int32_t W __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    float bound, least, free, min_derivative, unit_derivative;
    int bins, inverse;
} Spline;

/* what the formula finds of each number, in the words of spline.py */
typedef struct {
    V share[2][MOST], x, low[2], size[2], derivative[2], slope, curve, xi, rest, denominator, lift, numerator, steep;
    W inside, bin;
} Found;

#define CHOOSE(mask, yes, no) ((V)(((W)(yes) & (mask)) | ((W)(no) & ~(mask))))
#define WHOLE(x) __builtin_convertvector(x, W)
#define REAL(x) __builtin_convertvector(x, V)

INLINE V load(const float *from) {
    V x;
    memcpy(&x, from, sizeof x);
    return x;
}

INLINE void store(float *to, V x) { memcpy(to, &x, sizeof x); }
INLINE V all(float x) { return x - (V){0}; }
INLINE V larger(V x, V y) { return CHOOSE(x < y, y, x); }
INLINE V smaller(V x, V y) { return CHOOSE(x > y, y, x); }

/* 2^x for x <= 0 (Cephes) */
INLINE V power_of_2(V x) {
    x = larger(x, all(-126));
    W whole = WHOLE(x - 0.5f); /* the nearest one, towards zero */
    V t = x - REAL(whole);
    V p = 1.535336188319500e-4f * t + 1.339887440266574e-3f;
    p = p * t + 9.618437357674640e-3f;
    p = p * t + 5.550332471162809e-2f;
    p = p * t + 2.402264791363012e-1f;
    p = p * t + 6.931472028550421e-1f;
    return (p * t + 1) * (V)((whole + 127) << 23);
}

/* log x for normal x > 0 (Cephes) */
INLINE V logarithm(V x) {
    W exponent = ((W)x - 0x3f3504f3) >> 23; /* of sqrt(1/2) */
    V t = (V)((W)x - (exponent << 23)) - 1, square = t * t, e = REAL(exponent);
    V p = 7.0376836292e-2f * t - 1.1514610310e-1f;
    p = p * t + 1.1676998740e-1f;
    p = p * t - 1.2420140846e-1f;
    p = p * t + 1.4249322787e-1f;
    p = p * t - 1.6668057665e-1f;
    p = p * t + 2.0000714765e-1f;
    p = p * t - 2.4999993993e-1f;
    p = p * t + 3.3333331174e-1f;
    p = p * t * square - 2.12194440e-4f * e - 0.5f * square;
    return t + p + 0.693359375f * e;
}

INLINE V softplus(V x) {
    V least = power_of_2(LOG2_E * CHOOSE(x > 0, -x, x)), one = least + 1, gap = one - 1;
    V log1p = CHOOSE(gap > 0, logarithm(one) * (least / CHOOSE(gap > 0, gap, one)), least);
    return CHOOSE(x > 0, x, all(0)) + log1p;
}

INLINE V square_root(V x) {
    V y;
    for (int i = 0; i < WIDTH; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

INLINE void find(const Spline *s, V x, const float *raw, int64_t n, Found *f) {
    int bins = s->bins;
    V end[2] = {all(-s->bound), all(-s->bound)}, knot[2];
    f->x = larger(smaller(x, all(s->bound)), all(-s->bound));
    f->inside = f->x == x;
    for (int of = 0; of < 2; of++) {
        const float *r = raw + of * bins * n;
        V top = load(r), sum = all(0);
        for (int k = 1; k < bins; k++) top = larger(top, load(r + k * n));
        for (int k = 0; k < bins; k++) sum += f->share[of][k] = power_of_2(LOG2_E * (load(r + k * n) - top));
        sum = 1 / sum;
        for (int k = 0; k < bins; k++) f->share[of][k] *= sum;
    }
    const float *knots = raw + 2 * bins * n;
    V before = all(0);
    for (int of = 0; of < 2; of++) f->low[of] = f->size[of] = knot[of] = all(0);
    f->bin = (W){0} - 1;
    for (int k = 0; k < bins; k++) {
        W here = f->x >= end[s->inverse]; /* in this bin or a higher one */
        V after = k < bins - 1 ? load(knots + k * n) : all(0);
        for (int of = 0; of < 2; of++) {
            V size = s->least + s->free * f->share[of][k];
            f->low[of] = CHOOSE(here, end[of], f->low[of]);
            f->size[of] = CHOOSE(here, size, f->size[of]);
            knot[of] = CHOOSE(here, of ? after : before, knot[of]);
            end[of] += size;
        }
        f->bin -= here; /* a truth is -1 */
        before = after;
    }
    for (int of = 0; of < 2; of++) f->derivative[of] = s->min_derivative + softplus(knot[of] + s->unit_derivative);
    V d_low = f->derivative[0], d_high = f->derivative[1], width = f->size[0], height = f->size[1];
    V slope = height / width, curve = d_low + d_high - 2 * slope, xi;
    if (s->inverse) { /* the root in [0, 1] of a xi^2 + b xi + c, in the form without cancellation */
        V offset = f->x - f->low[1], bent = offset * curve;
        V a = bent + height * (slope - d_low), b = height * d_low - bent, c = -slope * offset;
        xi = 2 * c / (-b - square_root(larger(b * b - 4 * a * c, all(0))));
    } else {
        xi = (f->x - f->low[0]) / width;
    }
    V rest = 1 - xi, between = xi * rest;
    f->slope = slope, f->curve = curve, f->xi = xi, f->rest = rest;
    f->denominator = slope + curve * between;
    f->lift = (slope * xi * xi + d_low * between) / f->denominator;
    f->numerator = d_high * xi * xi + 2 * slope * between + d_low * rest * rest;
    V part = slope / f->denominator;
    f->steep = f->numerator * part * part;
}

static void encode(const Spline *s, const float *x, const float *raw, int64_t n, float *y, float *log_slope) {
    Found f;
    V before = load(x);
    find(s, before, raw, n, &f);
    V at = s->inverse ? f.low[0] + f.xi * f.size[0] : f.low[1] + f.size[1] * f.lift;
    V log = CHOOSE(f.inside, logarithm(f.steep), all(0));
    store(y, at + (before - f.x));
    store(log_slope, s->inverse ? -log : log);
}

static void gradient(const Spline *s, const float *x, const float *raw, int64_t n, const float *to_y,
                     const float *to_log_slope, float *to_x, float *to_raw) {
    Found f;
    int bins = s->bins;
    find(s, load(x), raw, n, &f);
    V by_y = CHOOSE(f.inside, load(to_y), all(0)), by_log = CHOOSE(f.inside, load(to_log_slope), all(0));
    by_log = s->inverse ? -by_log : by_log;
    V width = f.size[0], height = f.size[1], d_low = f.derivative[0], d_high = f.derivative[1];
    V xi = f.xi, rest = f.rest, between = xi * rest, slope = f.slope, middle = 1 - 2 * xi;
    V by_numerator = by_log / f.numerator, per_denominator = 2 * by_log / f.denominator;
    V by_x = d_high * xi + slope * middle - d_low * rest; /* half the numerator's */
    by_x = (2 * by_numerator * by_x - per_denominator * f.curve * middle) / width;
    V through = (by_y + by_x) / f.steep;
    by_y = s->inverse ? -through : by_y;
    by_x += by_y * f.steep;
    store(to_x, CHOOSE(f.inside, s->inverse ? through : by_x, load(to_y)));
    V by_top = by_y * height / f.denominator, by_bottom = -(per_denominator + by_top * f.lift);
    V by_slope = by_top * xi * xi + 2 * by_numerator * between + 2 * by_log / slope + by_bottom * (1 - 2 * between);
    V spread = by_slope / width, by_low[2] = {-by_x, by_y};
    V by_size[2] = {-(spread * slope + by_x * xi), spread + by_y * f.lift};
    V by_knot[2] = {(by_top + by_bottom) * between + by_numerator * rest * rest,
                    by_bottom * between + by_numerator * xi * xi};
    for (int of = 0; of < 2; of++) {
        V by_own = by_size[of] * (f.size[of] - s->least);
        V mean = by_own + by_low[of] * (f.low[of] + s->bound - REAL(f.bin) * s->least), below = s->free * by_low[of];
        for (int k = 0; k < bins; k++) {
            V by_share = f.share[of][k] * (CHOOSE(f.bin > k, below, all(0)) - mean);
            store(to_raw + (of * bins + k) * n, by_share + CHOOSE(f.bin == k, by_own, all(0)));
        }
        by_knot[of] *= 1 - power_of_2(LOG2_E * (s->min_derivative - f.derivative[of])); /* softplus's slope */
    }
    for (int k = 0; k < bins - 1; k++) {
        V by_lower = CHOOSE(f.bin == k + 1, by_knot[0], all(0));
        store(to_raw + (2 * bins + k) * n, CHOOSE(f.bin == k, by_knot[1], by_lower));
    }
}

/* Rows `first` to `last` of M, where N is at least WIDTH. The last events of a row that do not fill a vector are computed
   together with some before them, which then are computed twice. */
void loglik_spline(const Spline *s, const float *x, const float *raw, int64_t stride, int64_t first, int64_t last,
                   int64_t n, float *y, float *log_slope) {
    for (int64_t m = first; m < last; m++)
        for (int64_t at = 0; at < n; at += WIDTH) {
            int64_t event = at + WIDTH <= n ? at : n - WIDTH, i = m * n + event;
            encode(s, x + i, raw + m * stride + event, n, y + i, log_slope + i);
        }
}

void loglik_spline_gradient(const Spline *s, const float *x, const float *raw, int64_t stride, int64_t first,
                            int64_t last, int64_t n, const float *to_y, const float *to_log_slope, float *to_x,
                            float *to_raw) {
    int rows = 3 * s->bins - 1;
    for (int64_t m = first; m < last; m++)
        for (int64_t at = 0; at < n; at += WIDTH) {
            int64_t event = at + WIDTH <= n ? at : n - WIDTH, i = m * n + event;
            const float *r = raw + m * stride + event;
            gradient(s, x + i, r, n, to_y + i, to_log_slope + i, to_x + i, to_raw + m * rows * n + event);
        }
}
