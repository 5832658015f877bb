/* The monotonic rational-quadratic spline and its gradient in float32: the formulas of flows/spline.py and
   flows/spline_gradient.py, for WIDTH events at a time, with the intermediate values in registers. The vector types are
   extensions that gcc and clang share.

   x is (M, N); raw is (M, P, N) for K bins, P = 3 K - 1, and `stride` is the distance xi_rest its rows side M. */

#include <stdint.h>
#include <string.h>

#ifndef WIDTH
#define WIDTH 4 /* floats in one vector register */
#endif
#define INLINE static inline __attribute__((always_inline))
#define MAX_BINS 64 /* as in spline_kernel.py */
#define LOG2_E 1.44269504088896341f

typedef float Floats __attribute__((vector_size(4 * WIDTH)));
typedef int32_t Ints __attribute__((vector_size(4 * WIDTH)));

typedef struct {
    float bound, min_size, free, min_derivative, unit_derivative; /* free: 2 bound - bins min_size */
    int bins, inverse;
} Spline;

/* the values of the formula for each number, named as in spline.py; pairs are of x and of y */
typedef struct {
    Floats share[2][MAX_BINS], x, low[2], size[2], derivative[2];
    Floats slope, curvature, xi, rest, denominator, fraction, numerator, dy_dx;
    Ints inside, bin;
} Values;

#define SELECT(mask, yes, no) ((Floats)(((Ints)(yes) & (mask)) | ((Ints)(no) & ~(mask))))
#define TO_INTS(x) __builtin_convertvector(x, Ints)
#define TO_FLOATS(x) __builtin_convertvector(x, Floats)

INLINE Floats load(const float *source) {
    Floats x;
    memcpy(&x, source, sizeof x);
    return x;
}

INLINE void store(float *target, Floats x) { memcpy(target, &x, sizeof x); }
INLINE Floats broadcast(float x) { return x - (Floats){0}; }
INLINE Floats maximum(Floats x, Floats y) { return SELECT(x < y, y, x); }
INLINE Floats minimum(Floats x, Floats y) { return SELECT(x > y, y, x); }

/* 2^x for x <= 0 (Cephes) */
INLINE Floats power_of_2(Floats x) {
    x = maximum(x, broadcast(-126));
    Ints integer = TO_INTS(x - 0.5f); /* the conversion truncates, so this rounds x */
    Floats t = x - TO_FLOATS(integer);
    Floats p = 1.535336188319500e-4f * t + 1.339887440266574e-3f;
    p = p * t + 9.618437357674640e-3f;
    p = p * t + 5.550332471162809e-2f;
    p = p * t + 2.402264791363012e-1f;
    p = p * t + 6.931472028550421e-1f;
    return (p * t + 1) * (Floats)((integer + 127) << 23);
}

/* log x for normal x > 0 (Cephes) */
INLINE Floats logarithm(Floats x) {
    Ints exponent = ((Ints)x - 0x3f3504f3) >> 23; /* 0x3f3504f3 is sqrt(1/2) */
    Floats t = (Floats)((Ints)x - (exponent << 23)) - 1, square = t * t, e = TO_FLOATS(exponent);
    Floats p = 7.0376836292e-2f * t - 1.1514610310e-1f;
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

INLINE Floats softplus(Floats x) {
    Floats e = power_of_2(LOG2_E * SELECT(x > 0, -x, x)), sum = e + 1, rounded = sum - 1; /* e = exp(-|x|) */
    Floats log1p = SELECT(rounded > 0, logarithm(sum) * (e / SELECT(rounded > 0, rounded, sum)), e);
    return SELECT(x > 0, x, broadcast(0)) + log1p;
}

INLINE Floats square_root(Floats x) {
    Floats y;
    for (int i = 0; i < WIDTH; i++) y[i] = __builtin_sqrtf(x[i]);
    return y;
}

INLINE void evaluate(const Spline *s, Floats x, const float *raw, int64_t n, Values *v) {
    int bins = s->bins;
    Floats end[2] = {broadcast(-s->bound), broadcast(-s->bound)}, knot[2];
    v->x = maximum(minimum(x, broadcast(s->bound)), broadcast(-s->bound));
    v->inside = v->x == x;
    for (int side = 0; side < 2; side++) {
        const float *r = raw + side * bins * n;
        Floats top = load(r), sum = broadcast(0);
        for (int k = 1; k < bins; k++) top = maximum(top, load(r + k * n));
        for (int k = 0; k < bins; k++) sum += v->share[side][k] = power_of_2(LOG2_E * (load(r + k * n) - top));
        sum = 1 / sum;
        for (int k = 0; k < bins; k++) v->share[side][k] *= sum;
    }
    const float *knots = raw + 2 * bins * n;
    Floats before = broadcast(0);
    for (int side = 0; side < 2; side++) v->low[side] = v->size[side] = knot[side] = broadcast(0);
    v->bin = (Ints){0} - 1;
    for (int k = 0; k < bins; k++) {
        Ints here = v->x >= end[s->inverse]; /* the number is in this bin or a higher one */
        Floats after = k < bins - 1 ? load(knots + k * n) : broadcast(0);
        for (int side = 0; side < 2; side++) {
            Floats size = s->min_size + s->free * v->share[side][k];
            v->low[side] = SELECT(here, end[side], v->low[side]);
            v->size[side] = SELECT(here, size, v->size[side]);
            knot[side] = SELECT(here, side ? after : before, knot[side]);
            end[side] += size;
        }
        v->bin -= here; /* a comparison that holds gives -1 */
        before = after;
    }
    for (int side = 0; side < 2; side++)
        v->derivative[side] = s->min_derivative + softplus(knot[side] + s->unit_derivative);
    Floats d_low = v->derivative[0], d_high = v->derivative[1], width = v->size[0], height = v->size[1];
    Floats slope = height / width, curvature = d_low + d_high - 2 * slope, xi;
    if (s->inverse) { /* the root in [0, 1] of a xi^2 + b xi + c, in the form without cancellation */
        Floats offset = v->x - v->low[1], offset_curvature = offset * curvature;
        Floats a = offset_curvature + height * (slope - d_low), b = height * d_low - offset_curvature;
        Floats c = -slope * offset;
        xi = 2 * c / (-b - square_root(maximum(b * b - 4 * a * c, broadcast(0))));
    } else {
        xi = (v->x - v->low[0]) / width;
    }
    Floats rest = 1 - xi, xi_rest = xi * rest;
    v->slope = slope, v->curvature = curvature, v->xi = xi, v->rest = rest;
    v->denominator = slope + curvature * xi_rest;
    v->fraction = (slope * xi * xi + d_low * xi_rest) / v->denominator;
    v->numerator = d_high * xi * xi + 2 * slope * xi_rest + d_low * rest * rest;
    Floats ratio = slope / v->denominator;
    v->dy_dx = v->numerator * ratio * ratio;
}

static void map(const Spline *s, const float *x, const float *raw, int64_t n, float *y, float *log_slope) {
    Values v;
    Floats unclamped = load(x);
    evaluate(s, unclamped, raw, n, &v);
    Floats result = s->inverse ? v.low[0] + v.xi * v.size[0] : v.low[1] + v.size[1] * v.fraction;
    Floats log = SELECT(v.inside, logarithm(v.dy_dx), broadcast(0));
    store(y, result + (unclamped - v.x));
    store(log_slope, s->inverse ? -log : log);
}

static void gradient(const Spline *s, const float *x, const float *raw, int64_t n, const float *grad_y,
                     const float *grad_log_slope, float *grad_x, float *grad_raw) {
    Values v;
    int bins = s->bins;
    evaluate(s, load(x), raw, n, &v);
    Floats grad_at_y = SELECT(v.inside, load(grad_y), broadcast(0));
    Floats grad_log = SELECT(v.inside, load(grad_log_slope), broadcast(0));
    grad_log = s->inverse ? -grad_log : grad_log;
    Floats width = v.size[0], height = v.size[1], d_low = v.derivative[0], d_high = v.derivative[1];
    Floats xi = v.xi, rest = v.rest, xi_rest = xi * rest, slope = v.slope, middle = 1 - 2 * xi;
    Floats grad_numerator = grad_log / v.numerator, from_log = 2 * grad_log / v.denominator;
    Floats grad_at_x = d_high * xi + slope * middle - d_low * rest; /* half the numerator's derivative by xi */
    grad_at_x = (2 * grad_numerator * grad_at_x - from_log * v.curvature * middle) / width;
    Floats inverse_grad_x = (grad_at_y + grad_at_x) / v.dy_dx;
    grad_at_y = s->inverse ? -inverse_grad_x : grad_at_y;
    grad_at_x += grad_at_y * v.dy_dx;
    store(grad_x, SELECT(v.inside, s->inverse ? inverse_grad_x : grad_at_x, load(grad_y)));
    Floats grad_top = grad_at_y * height / v.denominator, grad_denominator = -(from_log + grad_top * v.fraction);
    Floats grad_slope =
        grad_top * xi * xi + 2 * grad_numerator * xi_rest + 2 * grad_log / slope + grad_denominator * (1 - 2 * xi_rest);
    Floats slope_per_width = grad_slope / width, grad_low[2] = {-grad_at_x, grad_at_y};
    Floats grad_size[2] = {-(slope_per_width * slope + grad_at_x * xi), slope_per_width + grad_at_y * v.fraction};
    Floats grad_derivative[2] = {(grad_top + grad_denominator) * xi_rest + grad_numerator * rest * rest,
                                 grad_denominator * xi_rest + grad_numerator * xi * xi};
    for (int side = 0; side < 2; side++) {
        Floats own = grad_size[side] * (v.size[side] - s->min_size);
        Floats mean = own + grad_low[side] * (v.low[side] + s->bound - TO_FLOATS(v.bin) * s->min_size);
        Floats below = s->free * grad_low[side];
        for (int k = 0; k < bins; k++) {
            Floats grad_share = v.share[side][k] * (SELECT(v.bin > k, below, broadcast(0)) - mean);
            store(grad_raw + (side * bins + k) * n, grad_share + SELECT(v.bin == k, own, broadcast(0)));
        }
        /* times the slope of softplus */
        grad_derivative[side] *= 1 - power_of_2(LOG2_E * (s->min_derivative - v.derivative[side]));
    }
    for (int k = 0; k < bins - 1; k++) {
        Floats lower = SELECT(v.bin == k + 1, grad_derivative[0], broadcast(0));
        store(grad_raw + (2 * bins + k) * n, SELECT(v.bin == k, grad_derivative[1], lower));
    }
}

/* Compute rows `first` to `last` of M, where N is at least WIDTH. If N is no multiple of WIDTH, the last vector of a
   row overlaps the one before it, and the events in both are computed twice. */
void loglik_spline(const Spline *s, const float *x, const float *raw, int64_t stride, int64_t first, int64_t last,
                   int64_t n, float *y, float *log_slope) {
    for (int64_t m = first; m < last; m++)
        for (int64_t start = 0; start < n; start += WIDTH) {
            int64_t event = start + WIDTH <= n ? start : n - WIDTH, i = m * n + event;
            map(s, x + i, raw + m * stride + event, n, y + i, log_slope + i);
        }
}

void loglik_spline_gradient(const Spline *s, const float *x, const float *raw, int64_t stride, int64_t first,
                            int64_t last, int64_t n, const float *grad_y, const float *grad_log_slope, float *grad_x,
                            float *grad_raw) {
    int rows = 3 * s->bins - 1;
    for (int64_t m = first; m < last; m++)
        for (int64_t start = 0; start < n; start += WIDTH) {
            int64_t event = start + WIDTH <= n ? start : n - WIDTH, i = m * n + event;
            const float *r = raw + m * stride + event;
            gradient(s, x + i, r, n, grad_y + i, grad_log_slope + i, grad_x + i, grad_raw + m * rows * n + event);
        }
}
