/* The kernels of native.c, for one instruction set and number type.
 *
 * native.c includes this file with TARGET, VECTOR_BYTES, TILE and REAL defined; it has what the
 * kernels share, and the letters of the shapes. REAL is undefined again at the end.
 */

#define LANES ((size)(VECTOR_BYTES / sizeof(REAL)))
#define vector NAME(vector)
#define loose NAME(loose)
#define lanes NAME(lanes)
#define byte_lanes NAME(byte_lanes)
#define scene_block NAME(scene_block)
typedef REAL vector __attribute__((vector_size(VECTOR_BYTES)));
/* A vector as it lies in an array of REAL, at any address. */
typedef REAL loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
/* Integers as wide as REAL, as comparisons yield them, and as many bytes. */
typedef JOIN(integer, like, REAL) lanes __attribute__((vector_size(VECTOR_BYTES)));
typedef uint8_t byte_lanes __attribute__((vector_size(VECTOR_BYTES / sizeof(REAL))));

static size NAME(bytes)(size count) { return count * (size)sizeof(REAL); }

/* sum[n][v] += sum over outer a, inner b of x[a*x_outer + b*x_inner + n*x_tile] times vector v at
 * w[a*w_outer + b*w_inner]. `vectors` (1 or 2) is a constant where this is inlined, so that `sum`
 * lives in registers. */
static ALWAYS_INLINE void NAME(accumulate)(vector sum[TILE][2], const REAL *x, size x_tile,
                                           const REAL *w, walk s, int vectors)
{
    for (size a = 0; a < s.outer; a++) {
        const REAL *p = x + a * s.x_outer, *q = w + a * s.w_outer;
        for (size b = 0; b < s.inner; b++, p += s.x_inner, q += s.w_inner) {
            vector t[2];
            for (int v = 0; v < vectors; v++)
                t[v] = ((const loose *)q)[v];
            for (int n = 0; n < TILE; n++)
                for (int v = 0; v < vectors; v++)
                    sum[n][v] += p[n * x_tile] * t[v];
        }
    }
}

static ALWAYS_INLINE void NAME(clear)(vector sum[TILE][2], int vectors)
{
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = (vector){0};
}

/* The first `count` numbers at `from`, at most LANES; zeros behind them. */
static ALWAYS_INLINE vector NAME(load_some)(const REAL *from, size count)
{
    vector result = {0};
    if (count >= LANES)
        return *(const loose *)from;
    memcpy(&result, from, (size_t)NAME(bytes)(count));
    return result;
}

static ALWAYS_INLINE void NAME(store_some)(REAL *to, vector from, size count)
{
    if (count >= LANES)
        *(loose *)to = from;
    else
        memcpy(to, &from, (size_t)NAME(bytes)(count));
}

static ALWAYS_INLINE REAL NAME(root)(REAL x)
{
    return sizeof(REAL) == sizeof(float) ? (REAL)sqrtf((float)x) : (REAL)sqrt((double)x);
}

static ALWAYS_INLINE REAL NAME(to_power)(REAL x, double power)
{
    return sizeof(REAL) == sizeof(float) ? (REAL)powf((float)x, (float)power)
                                         : (REAL)pow((double)x, power);
}

/* Copies an image (rows, columns, maps) into a zeroed one (high, wide, maps): entry (r, c) to
 * (top + r*step, top + c*step), unless that falls outside. */
static void NAME(spread)(const REAL *image, size rows, size columns, size maps, REAL *to,
                         size high, size wide, size top, size step)
{
    for (size r = 0; r < rows; r++) {
        size at = top + r * step;
        if (at < 0 || at >= high)
            continue;
        const REAL *from = image + r * columns * maps;
        REAL *row = to + at * wide * maps;
        if (step == 1 && top >= 0 && top + columns <= wide) {
            memcpy(row + top * maps, from, (size_t)NAME(bytes)(columns * maps));
            continue;
        }
        for (size c = 0; c < columns; c++)
            if (top + c * step >= 0 && top + c * step < wide)
                memcpy(row + (top + c * step) * maps, from + c * maps, (size_t)NAME(bytes)(maps));
    }
}

/* ---- convolution ---- */

/* TILE pixels at row r, column c, outputs from i on, with packed weights (K, K*maps, padded
 * outputs); only the kernel rows that lie on the image count. */
static ALWAYS_INLINE void NAME(correlate_tile)(const plane *s, const REAL *x, const REAL *packed,
                                               const REAL *bias, REAL *y, size r, size c, size i,
                                               int vectors)
{
    vector sum[TILE][2];
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            sum[n][v] = ((const loose *)(bias + i))[v];
    size row = s->kernel * s->maps, width = s->padded_outputs;
    size first = larger(0, s->top - r * s->stride);
    size last = smaller(s->kernel, s->bottom - r * s->stride);
    x += ((r * s->stride + first) * s->wide + c * s->stride) * s->maps;
    NAME(accumulate)(sum, x, s->stride * s->maps, packed + first * row * width + i,
                     (walk){last - first, row, s->wide * s->maps, 1, row * width, width}, vectors);
    y += (r * s->columns + c) * s->outputs + i;
    for (int n = 0; n < TILE && n < s->columns - c; n++)
        for (int v = 0; v < vectors; v++)
            NAME(store_some)(y + n * s->outputs + v * LANES, sum[n][v], s->outputs - i - v * LANES);
}

static void NAME(correlate)(const plane *s, const REAL *x, const REAL *packed, const REAL *bias,
                            REAL *y)
{
    for (size i = 0; i < s->outputs; i += 2 * LANES)
        for (size r = 0; r < s->rows; r++)
            for (size c = 0; c < s->columns; c += TILE)
                if (s->outputs - i > LANES)
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 2);
                else
                    NAME(correlate_tile)(s, x, packed, bias, y, r, c, i, 1);
}

/* Elements of a padded image and of the TILE pixels that a tile may read behind its last one. */
static size NAME(scene_size)(const plane *s, size high)
{
    return round_up((high * s->wide + TILE * s->stride) * s->maps, LANES);
}

static int NAME(conv_forward)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0], *weight = arrays[1];
    REAL *y = arrays[2];
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    size taps = s->kernel * s->kernel * s->in_maps, padded = round_up(s->out_maps, LANES);
    plane p = {wide, s->padding, s->padding + s->height, s->in_maps, s->kernel, s->stride,
               s->out_height, s->out_width, s->out_maps, padded};
    void *block;
    REAL *bias = scratch(NAME(bytes)((1 + taps) * padded + NAME(scene_size)(&p, high)), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size q = 0; q <= taps; q++)
            bias[q * padded + i] = weight[i * (1 + taps) + q];
    for (size m = 0; m < s->images; m++) {
        NAME(spread)(x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps,
                     scene, high, wide, s->padding, 1);
        NAME(correlate)(&p, scene, packed, bias, y + m * p.rows * p.columns * p.outputs);
    }
    free(block);
    return 0;
}

/* dx is the correlation of dy, spread by the stride and padded by K - 1 - padding, with the
 * weights turned by half a turn and with J and I exchanged. */
static int NAME(conv_backward_data)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *dy = arrays[0], *weight = arrays[1];
    REAL *dx = arrays[2];
    size high = s->height + s->kernel - 1, wide = s->width + s->kernel - 1;
    size taps = s->kernel * s->kernel, padded = round_up(s->in_maps, LANES);
    size top = s->kernel - 1 - s->padding, bottom = top + (s->out_height - 1) * s->stride + 1;
    plane p = {wide, top, bottom, s->out_maps, s->kernel, 1,
               s->height, s->width, s->in_maps, padded};
    void *block;
    REAL *bias = scratch(NAME(bytes)((1 + taps * s->out_maps) * padded +
                                     NAME(scene_size)(&p, high)), &block);
    if (bias == NULL)
        return -1;
    REAL *packed = bias + padded, *scene = packed + taps * s->out_maps * padded;
    for (size i = 0; i < s->out_maps; i++)
        for (size delta = 0; delta < taps; delta++)
            memcpy(packed + ((taps - 1 - delta) * s->out_maps + i) * padded,
                   weight + i * (1 + taps * s->in_maps) + 1 + delta * s->in_maps,
                   (size_t)NAME(bytes)(s->in_maps));
    for (size m = 0; m < s->images; m++) {
        NAME(spread)(dy + m * s->out_height * s->out_width * s->out_maps, s->out_height,
                     s->out_width, s->out_maps, scene, high, wide, top, s->stride);
        NAME(correlate)(&p, scene, packed, bias, dx + m * p.rows * p.columns * p.outputs);
    }
    free(block);
    return 0;
}

/* sums (TILE entries from q of kernel row kr) x (outputs from i) += one image's products over the
 * output rows whose kernel row lies on the image. x is padded; sums is (K, row, padded outputs),
 * the K*J entries of a kernel row rounded up to whole tiles. */
static ALWAYS_INLINE void NAME(gradient_tile)(const conv_shape *s, const REAL *x, const REAL *dy,
                                              size padded, REAL *sums, size kr, size q, size i,
                                              int vectors)
{
    vector sum[TILE][2];
    size wide = (s->width + 2 * s->padding) * s->in_maps, step = s->stride * wide;
    size first = larger(0, (s->padding - kr + s->stride - 1) / s->stride);
    size last = smaller(s->out_height, (s->padding - kr + s->height - 1 + s->stride) / s->stride);
    size dy_row = s->out_width * padded;
    NAME(clear)(sum, vectors);
    NAME(accumulate)(sum, x + kr * wide + first * step + q, 1, dy + first * dy_row + i,
                     (walk){last - first, s->out_width, step, s->stride * s->in_maps, dy_row,
                            padded}, vectors);
    sums += (kr * round_up(s->kernel * s->in_maps, TILE) + q) * padded + i;
    for (int n = 0; n < TILE; n++)
        for (int v = 0; v < vectors; v++)
            ((loose *)(sums + n * padded))[v] += sum[n][v];
}

static void NAME(gradient)(const conv_shape *s, const REAL *x, const REAL *dy, size padded,
                           REAL *sums)
{
    for (size i = 0; i < padded; i += 2 * LANES)
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < s->kernel * s->in_maps; q += TILE)
                if (padded - i > LANES)
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 2);
                else
                    NAME(gradient_tile)(s, x, dy, padded, sums, kr, q, i, 1);
}

/* bias (outputs) += sum of dy over one image, which is taken first: fewer roundings. */
static void NAME(bias_gradient)(const REAL *dy, size positions, size padded, REAL *bias)
{
    for (size i = 0; i < padded; i += LANES) {
        vector sum = {0};
        for (size t = 0; t < positions; t++)
            sum += *(const loose *)(dy + t * padded + i);
        *(loose *)(bias + i) += sum;
    }
}

/* out (I, 1 + K*row) from sums whose kernel rows are rounded up and whose outputs are fastest. */
static void NAME(store_gradient)(const conv_shape *s, const REAL *bias, const REAL *sums,
                                 size padded, REAL *out)
{
    size entries = s->kernel * s->in_maps, row = round_up(entries, TILE);
    for (size i = 0; i < s->out_maps; i++) {
        *out++ = bias[i];
        for (size kr = 0; kr < s->kernel; kr++)
            for (size q = 0; q < entries; q++)
                *out++ = sums[(kr * row + q) * padded + i];
    }
}

static int NAME(conv_backward_weights)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0], *dy = arrays[1];
    size high = s->height + 2 * s->padding, wide = s->width + 2 * s->padding;
    size padded = round_up(s->out_maps, LANES), positions = s->out_height * s->out_width;
    size sums_size = s->kernel * round_up(s->kernel * s->in_maps, TILE) * padded;
    size scene_size = round_up(high * wide * s->in_maps + TILE, LANES);
    int widen = padded != s->out_maps; /* else whole vectors of dy are read where they lie */
    void *block;
    REAL *bias = scratch(NAME(bytes)(padded + sums_size + scene_size +
                                     (widen ? positions * padded : 0)), &block);
    if (bias == NULL)
        return -1;
    REAL *sums = bias + padded, *scene = sums + sums_size, *wider = scene + scene_size;
    for (size m = 0; m < s->images; m++) {
        const REAL *errors = dy + m * positions * s->out_maps;
        for (size t = 0; t < positions && widen; t++)
            memcpy(wider + t * padded, errors + t * s->out_maps, (size_t)NAME(bytes)(s->out_maps));
        if (widen)
            errors = wider;
        NAME(spread)(x + m * s->height * s->width * s->in_maps, s->height, s->width, s->in_maps,
                     scene, high, wide, s->padding, 1);
        NAME(gradient)(s, scene, errors, padded, sums);
        NAME(bias_gradient)(errors, positions, padded, bias);
    }
    NAME(store_gradient)(s, bias, sums, padded, arrays[2]);
    free(block);
    return 0;
}

/* ---- Kronecker factor Omega: the Gram matrix of the patches, without the patches ---- */

/* Entry ((delta, j), (delta', j')) is the sum over output positions t of a[t + delta - padding, j]
 * times a[t + delta' - padding, j'], where a = 0 outside the image. With s = t + delta - padding
 * and d = delta' - delta that is a[s, j] * a[s + d, j'], summed over a window of s that depends on
 * delta alone. So the few offsets d, each summed once over every region between the windows' edges,
 * serve all pairs of taps, and no term is subtracted.
 *
 * regions is (row regions, column regions, K, J + 1, (2K-1)*J), its last three axes d_row, j and
 * (d_column + K-1)*J + j', for d_row >= 0 (the rest follows by symmetry) and, where d_row = 0,
 * d_column >= 0. Its row j = J at d = 0 has the sums of a itself. */

#define GRAM_CACHE (1 << 19) /* bytes of padded images that are summed before a result is stored */

static size NAME(region_size)(const conv_shape *s)
{
    return s->kernel * (s->in_maps + 1) * (2 * s->kernel - 1) * s->in_maps;
}

/* Images under way, padded by `border` columns left and right, and their region. */
typedef struct {
    const REAL *images;
    size count, step, height, wide, maps, border;
    size row, column, rows, columns;
} scene_block;

/* to (TILE rows from j) x (columns from i) += the region's products for one d_row, which has `rows`
 * rows with a partner on the image. */
static ALWAYS_INLINE void NAME(gram_tile)(const scene_block *b, REAL *to, size d_row, size rows,
                                          size j, size i, int vectors)
{
    vector sum[TILE][2];
    size row_step = b->wide * b->maps, columns = (2 * b->border + 1) * b->maps;
    const REAL *first = b->images + (b->row * b->wide + b->column) * b->maps;
    const REAL *x = first + b->border * b->maps + j, *w = first + d_row * row_step + i;
    NAME(clear)(sum, vectors);
    if (rows == 1) /* the images take the place of the rows */
        NAME(accumulate)(sum, x, 1, w, (walk){b->count, b->columns, b->step, b->maps, b->step,
                                              b->maps}, vectors);
    else
        for (size m = 0; m < b->count; m++)
            NAME(accumulate)(sum, x + m * b->step, 1, w + m * b->step,
                             (walk){rows, b->columns, row_step, b->maps, row_step, b->maps},
                             vectors);
    for (int n = 0; n < TILE && n < b->maps - j; n++)
        for (int v = 0; v < vectors; v++) {
            size count = columns - i - v * LANES;
            REAL *at = to + (j + n) * columns + i + v * LANES;
            NAME(store_some)(at, NAME(load_some)(at, count) + sum[n][v], count);
        }
}

/* to (K, J + 1, (2K-1)*J) += all products of the region. */
static void NAME(gram_region)(const scene_block *b, REAL *to)
{
    size columns = (2 * b->border + 1) * b->maps;
    for (size d_row = 0; d_row <= b->border; d_row++, to += (b->maps + 1) * columns) {
        size rows = smaller(b->rows, b->height - d_row - b->row);
        if (rows <= 0)
            return;
        for (size i = d_row == 0 ? b->border * b->maps : 0; i < columns; i += 2 * LANES)
            for (size j = 0; j < b->maps; j += TILE)
                if (columns - i > LANES)
                    NAME(gram_tile)(b, to, d_row, rows, j, i, 2);
                else
                    NAME(gram_tile)(b, to, d_row, rows, j, i, 1);
    }
}

/* to (J) += sum of the region's pixels. */
static void NAME(region_sums)(const scene_block *b, REAL *restrict to)
{
    for (size m = 0; m < b->count; m++)
        for (size r = b->row; r < b->row + b->rows; r++)
            for (size c = b->column; c < b->column + b->columns; c++) {
                const REAL *a = b->images + m * b->step + (r * b->wide + b->border + c) * b->maps;
                for (size j = 0; j < b->maps; j++)
                    to[j] += a[j];
            }
}

static void NAME(gram_block)(scene_block *b, const conv_shape *s, REAL *to)
{
    size sums = (s->in_maps * (2 * s->kernel - 1) + s->kernel - 1) * s->in_maps;
    for (b->row = 0; b->row < s->height; b->row += b->rows) {
        b->rows = region_end(b->row, s->height, s->kernel, s->padding) - b->row;
        for (b->column = 0; b->column < s->width; b->column += b->columns) {
            b->columns = region_end(b->column, s->width, s->kernel, s->padding) - b->column;
            NAME(gram_region)(b, to);
            NAME(region_sums)(b, to + sums);
            to += NAME(region_size)(s);
        }
    }
}

static int NAME(patch_gram_regions)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *x = arrays[0];
    REAL *regions = arrays[1];
    size border = s->kernel - 1, wide = s->width + 2 * border;
    size pixels = s->height * s->width * s->in_maps;
    size step = round_up(s->height * wide * s->in_maps, LANES);
    size capacity = smaller(s->images, 1 + GRAM_CACHE / (1 + NAME(bytes)(step)));
    size count = region_count(s->height, s->kernel, s->padding) *
                 region_count(s->width, s->kernel, s->padding);
    void *block;
    /* tiles read up to TILE rows and two vectors behind the last image */
    REAL *scenes = scratch(NAME(bytes)(capacity * step + TILE + 2 * LANES), &block);
    if (scenes == NULL)
        return -1;
    memset(regions, 0, (size_t)NAME(bytes)(count * NAME(region_size)(s)));
    for (size first = 0; first < s->images; first += capacity) {
        scene_block b = {.images = scenes, .count = smaller(capacity, s->images - first),
                         .step = step, .height = s->height, .wide = wide, .maps = s->in_maps,
                         .border = border};
        for (size m = 0; m < b.count; m++)
            NAME(spread)(x + (first + m) * pixels, s->height, s->width, s->in_maps,
                         scenes + m * step + border * s->in_maps, s->height, wide, 0, 1);
        NAME(gram_block)(&b, s, regions);
    }
    free(block);
    return 0;
}

/* to (count rows, J; row step to_step) = sum over the regions inside the windows of tap (kr, kc) of
 * the block that starts `from` in the first region, with row step from_step. */
static void NAME(window_sum)(const conv_shape *s, size kr, size kc, const REAL *from,
                             size from_step, REAL *to, size to_step, size count)
{
    size K = s->kernel, padding = s->padding;
    for (size j = 0; j < count; j++)
        memset(to + j * to_step, 0, (size_t)NAME(bytes)(s->in_maps));
    for (size r = 0; r < s->height; r = region_end(r, s->height, K, padding))
        for (size c = 0; c < s->width; c = region_end(c, s->width, K, padding)) {
            const REAL *region = from;
            from += NAME(region_size)(s);
            if (!region_in_window(r, kr, s->height, K, padding) ||
                !region_in_window(c, kc, s->width, K, padding))
                continue;
            for (size j = 0; j < count; j++) {
                const REAL *restrict p = region + j * from_step;
                REAL *restrict q = to + j * to_step;
                for (size i = 0; i < s->in_maps; i++)
                    q[i] += p[i];
            }
        }
}

/* Writes a block (maps, maps) of a matrix of `side` columns, transposed, to `mirror`. */
static void NAME(transpose)(const REAL *block, REAL *mirror, size maps, size side)
{
    for (size i = 0; i < maps; i++)
        for (size j = 0; j < maps; j++)
            mirror[i * side + j] = block[j * side + i];
}

static int NAME(patch_gram_assemble)(void *const *arrays, const void *shape)
{
    const conv_shape *s = shape;
    const REAL *regions = arrays[0];
    REAL *gram = arrays[1];
    size K = s->kernel, maps = s->in_maps, side = 1 + K * K * maps, columns = (2 * K - 1) * maps;
    gram[0] = (REAL)s->images * (REAL)(s->out_height * s->out_width);
    for (size delta = 0; delta < K * K; delta++) {
        size kr = delta / K, kc = delta % K;
        REAL *sums = gram + 1 + delta * maps, *rows = gram + (1 + delta * maps) * side;
        NAME(window_sum)(s, kr, kc, regions + maps * columns + (K - 1) * maps, 0, sums, 0, 1);
        for (size j = 0; j < maps; j++)
            rows[j * side] = sums[j];
        for (size other = delta; other < K * K; other++) {
            size d_row = other / K - kr, d_column = other % K - kc;
            const REAL *from = regions + d_row * (maps + 1) * columns + (d_column + K - 1) * maps;
            REAL *block = rows + 1 + other * maps;
            NAME(window_sum)(s, kr, kc, from, columns, block, side, maps);
            if (other > delta)
                NAME(transpose)(block, gram + (1 + other * maps) * side + 1 + delta * maps, maps,
                                side);
        }
    }
    return 0;
}

/* ---- pooling ---- */

/* The maximum over window `w` of the `count` maps from j on, at most LANES, and its offset. */
static ALWAYS_INLINE void NAME(maximum)(const pool_shape *s, pool_window w, const REAL *x, size j,
                                        size count, REAL *y, uint8_t *argmax)
{
    vector best = NAME(load_some)(x + (w.image + w.row * s->width + w.column) * s->maps + j, count);
    lanes at = {0};
    for (size r = w.row; r < w.row_end; r++)
        for (size c = w.column; c < w.column_end; c++) {
            vector value = NAME(load_some)(x + (w.image + r * s->width + c) * s->maps + j, count);
            lanes take = (value > best) | (value != value); /* a NaN is passed on, not hidden */
            int offset = (int)((r - w.row) * s->window + c - w.column);
            best = (vector)((take & (lanes)value) | (~take & (lanes)best));
            at = (take & ((lanes){0} + offset)) | (~take & at);
        }
    NAME(store_some)(y, best, count);
    byte_lanes offsets = __builtin_convertvector(at, byte_lanes);
    memcpy(argmax, &offsets, (size_t)smaller(count, LANES));
}

static int NAME(max_pool)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        for (size j = 0; j < s->maps; j += LANES)
            NAME(maximum)(s, w, arrays[0], j, s->maps - j, (REAL *)arrays[1] + t * s->maps + j,
                          (uint8_t *)arrays[2] + t * s->maps + j);
    }
    return 0;
}

/* The other passes are plain loops over the maps of a pixel, which compilers turn into vectors. */

static int NAME(max_pool_backward)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    REAL *dx = arrays[2];
    memset(dx, 0, (size_t)NAME(bytes)(s->images * s->height * s->width * s->maps));
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const REAL *restrict from = (const REAL *)arrays[0] + t * s->maps;
        const uint8_t *restrict at = (const uint8_t *)arrays[1] + t * s->maps;
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                REAL *restrict to = dx + (w.image + r * s->width + c) * s->maps;
                uint8_t offset = (uint8_t)((r - w.row) * s->window + c - w.column);
                for (size j = 0; j < s->maps; j++)
                    to[j] += at[j] == offset ? from[j] : 0;
            }
    }
    return 0;
}

static int NAME(max_pool_tangent)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    const REAL *rx = arrays[0];
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const uint8_t *restrict at = (const uint8_t *)arrays[1] + t * s->maps;
        REAL *restrict to = (REAL *)arrays[2] + t * s->maps;
        memset(to, 0, (size_t)NAME(bytes)(s->maps));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                const REAL *restrict from = rx + (w.image + r * s->width + c) * s->maps;
                uint8_t offset = (uint8_t)((r - w.row) * s->window + c - w.column);
                for (size j = 0; j < s->maps; j++)
                    to[j] = at[j] == offset ? from[j] : to[j];
            }
    }
    return 0;
}

static int NAME(avg_pool)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    const REAL *x = arrays[0];
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        REAL *restrict to = (REAL *)arrays[1] + t * s->maps;
        REAL area = (REAL)((w.row_end - w.row) * (w.column_end - w.column));
        memset(to, 0, (size_t)NAME(bytes)(s->maps));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                const REAL *restrict from = x + (w.image + r * s->width + c) * s->maps;
                for (size j = 0; j < s->maps; j++)
                    to[j] += from[j];
            }
        for (size j = 0; j < s->maps; j++)
            to[j] /= area;
    }
    return 0;
}

static int NAME(avg_pool_backward)(void *const *arrays, const void *shape)
{
    const pool_shape *s = shape;
    REAL *dx = arrays[1];
    memset(dx, 0, (size_t)NAME(bytes)(s->images * s->height * s->width * s->maps));
    for (size t = 0; t < pool_outputs(s); t++) {
        pool_window w = window_of(s, t);
        const REAL *restrict from = (const REAL *)arrays[0] + t * s->maps;
        REAL area = (REAL)((w.row_end - w.row) * (w.column_end - w.column));
        for (size r = w.row; r < w.row_end; r++)
            for (size c = w.column; c < w.column_end; c++) {
                REAL *restrict to = dx + (w.image + r * s->width + c) * s->maps;
                for (size j = 0; j < s->maps; j++)
                    to[j] += from[j] / area;
            }
    }
    return 0;
}

/* ---- response normalisation ---- */

/* to[n] = d[n]^-power; three quarters, the published exponent, from square roots. */
static void NAME(inverse_power)(const REAL *restrict d, REAL *restrict to, size count, double power)
{
    if (power == 0.75)
        for (size n = 0; n < count; n++) {
            REAL root = NAME(root)(d[n]);
            to[n] = 1 / (root * NAME(root)(root));
        }
    else
        for (size n = 0; n < count; n++)
            to[n] = NAME(to_power)(d[n], -power);
}

/* to[n] += from[n + shift], where both lie within `count`. */
static void NAME(add_shifted)(const REAL *restrict from, REAL *restrict to, size count, size shift)
{
    size end = smaller(count, count - shift);
    for (size n = larger(0, -shift); n < end; n++)
        to[n] += from[n + shift];
}

/* sums (H, W, J) of the terms of one image over each element's neighbourhood, from `before`
 * elements before it to `after` elements after it, clipped; `adjoint` mirrors it. `line` is scratch
 * for W*J numbers. */
static void NAME(neighbour_sums)(const norm_shape *s, const REAL *terms, int adjoint, REAL *sums,
                                 REAL *line)
{
    size half = s->window / 2, before = adjoint ? s->window - 1 - half : half;
    size after = s->window - 1 - before, length = s->width * s->maps;
    memset(sums, 0, (size_t)NAME(bytes)(s->height * length));
    if (s->across) {
        for (size at = 0; at < s->height * length; at += s->maps)
            for (size shift = -before; shift <= after; shift++)
                NAME(add_shifted)(terms + at, sums + at, s->maps, shift);
        return;
    }
    for (size r = 0; r < s->height; r++) {
        memset(line, 0, (size_t)NAME(bytes)(length));
        for (size a = larger(0, r - before); a < smaller(s->height, r + after + 1); a++)
            NAME(add_shifted)(terms + a * length, line, length, 0);
        for (size shift = -before; shift <= after; shift++)
            NAME(add_shifted)(line, sums + r * length, length, shift * s->maps);
    }
}

/* Scratch for `images` images and a line of one. */
static REAL *NAME(norm_scratch)(const norm_shape *s, size images)
{
    return malloc((size_t)NAME(bytes)((images * s->height + 1) * s->width * s->maps) + 1);
}

static int NAME(response_norm)(void *const *arrays, const void *shape)
{
    const norm_shape *s = shape;
    size count = s->height * s->width * s->maps;
    REAL alpha = (REAL)s->alpha, *terms = NAME(norm_scratch)(s, 1);
    if (terms == NULL)
        return -1;
    for (size m = 0; m < s->images; m++) {
        const REAL *restrict x = (const REAL *)arrays[0] + m * count;
        REAL *restrict y = (REAL *)arrays[1] + m * count;
        REAL *restrict d = (REAL *)arrays[2] + m * count;
        for (size n = 0; n < count; n++)
            terms[n] = x[n] * x[n];
        NAME(neighbour_sums)(s, terms, 0, d, terms + count);
        for (size n = 0; n < count; n++)
            d[n] = 1 + alpha * d[n];
        NAME(inverse_power)(d, y, count, s->power);
        for (size n = 0; n < count; n++)
            y[n] *= x[n];
    }
    free(terms);
    return 0;
}

/* With shrink = d^-power, the derivative of y = x shrink at x, applied to v:
 *     out = v shrink - 2 alpha power x shrink / d * (sums of x v),
 * or its adjoint: out = v shrink - 2 alpha power x * (adjoint sums of v x shrink / d). */
static int NAME(response_norm_derivative)(void *const *arrays, const norm_shape *s, int adjoint)
{
    size count = s->height * s->width * s->maps;
    REAL slope = (REAL)(2 * s->alpha * s->power);
    REAL *terms = NAME(norm_scratch)(s, 2);
    if (terms == NULL)
        return -1;
    REAL *shrink = terms + count;
    for (size m = 0; m < s->images; m++) {
        const REAL *restrict v = (const REAL *)arrays[0] + m * count;
        const REAL *restrict x = (const REAL *)arrays[1] + m * count;
        const REAL *restrict d = (const REAL *)arrays[2] + m * count;
        REAL *restrict out = (REAL *)arrays[3] + m * count;
        NAME(inverse_power)(d, shrink, count, s->power);
        for (size n = 0; n < count; n++)
            terms[n] = adjoint ? v[n] * x[n] * shrink[n] / d[n] : x[n] * v[n];
        NAME(neighbour_sums)(s, terms, adjoint, out, shrink + count);
        for (size n = 0; n < count; n++)
            out[n] = v[n] * shrink[n] -
                     (adjoint ? slope * x[n] : slope * x[n] * shrink[n] / d[n]) * out[n];
    }
    free(terms);
    return 0;
}

static int NAME(response_norm_backward)(void *const *arrays, const void *shape)
{
    return NAME(response_norm_derivative)(arrays, shape, 1);
}

static int NAME(response_norm_tangent)(void *const *arrays, const void *shape)
{
    return NAME(response_norm_derivative)(arrays, shape, 0);
}

/* ---- random numbers ---- */

/* Philox 4x32-10, as in kfcnet/philox.py: words[w][b] is word w of block `block` + b. The blocks
 * of a call go through the rounds side by side, one a lane. */
static ALWAYS_INLINE void NAME(philox)(const draw_shape *s, uint64_t block,
                                       uint32_t words[4][PHILOX_BLOCKS])
{
    uint32_t key_low = s->seed, key_high = s->purpose;
    for (int b = 0; b < PHILOX_BLOCKS; b++) {
        words[0][b] = (uint32_t)(block + (uint64_t)b);
        words[1][b] = s->stream;
        words[2][b] = (uint32_t)s->step;
        words[3][b] = (uint32_t)(s->step >> 32);
    }
    for (int round = 0; round < 10; round++) {
        for (int b = 0; b < PHILOX_BLOCKS; b++) {
            uint64_t p = (uint64_t)words[0][b] * 0xD2511F53u;
            uint64_t q = (uint64_t)words[2][b] * 0xCD9E8D57u;
            words[0][b] = (uint32_t)(q >> 32) ^ words[1][b] ^ key_low;
            words[2][b] = (uint32_t)(p >> 32) ^ words[3][b] ^ key_high;
            words[1][b] = (uint32_t)q;
            words[3][b] = (uint32_t)p;
        }
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}

static int NAME(fill_uniforms)(void *const *arrays, const void *shape)
{
    const draw_shape *s = shape;
    REAL *out = arrays[0];
    uint32_t words[4][PHILOX_BLOCKS];
    REAL numbers[4 * PHILOX_BLOCKS];
    size end = s->first + s->count;
    for (size begin = s->first / 4 * 4; begin < end; begin += 4 * PHILOX_BLOCKS) {
        NAME(philox)(s, (uint64_t)begin / 4, words);
        for (int b = 0; b < PHILOX_BLOCKS; b++)
            for (int w = 0; w < 4; w++)
                numbers[4 * b + w] = (REAL)(int32_t)(words[w][b] >> 8) * (REAL)0x1p-24;
        size from = larger(begin, s->first), to = smaller(begin + 4 * PHILOX_BLOCKS, end);
        memcpy(out + (from - s->first), numbers + (from - begin), (size_t)NAME(bytes)(to - from));
    }
    return 0;
}

static pass *const NAME(kernels)[PASSES] = {
    [CONV_FORWARD] = NAME(conv_forward),
    [CONV_BACKWARD_DATA] = NAME(conv_backward_data),
    [CONV_BACKWARD_WEIGHTS] = NAME(conv_backward_weights),
    [PATCH_GRAM_REGIONS] = NAME(patch_gram_regions),
    [PATCH_GRAM_ASSEMBLE] = NAME(patch_gram_assemble),
    [MAX_POOL] = NAME(max_pool),
    [MAX_POOL_BACKWARD] = NAME(max_pool_backward),
    [MAX_POOL_TANGENT] = NAME(max_pool_tangent),
    [AVG_POOL] = NAME(avg_pool),
    [AVG_POOL_BACKWARD] = NAME(avg_pool_backward),
    [RESPONSE_NORM] = NAME(response_norm),
    [RESPONSE_NORM_BACKWARD] = NAME(response_norm_backward),
    [RESPONSE_NORM_TANGENT] = NAME(response_norm_tangent),
    [FILL_UNIFORMS] = NAME(fill_uniforms),
};

#undef LANES
#undef vector
#undef loose
#undef lanes
#undef byte_lanes
#undef scene_block
#undef REAL
