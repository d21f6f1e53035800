// kernels/adaptive_update.cu: the steps of Adagrad, RMSProp and Adam over the parameter vector.
//
// With g = gradient + weight_decay * theta, all element by element:
//   adagrad  squares += g^2
//            theta   -= learning_rate * g / (sqrt(squares) + epsilon)
//   rmsprop  squares += gain * (g^2 - squares)
//            theta   -= learning_rate * g / (sqrt(squares) + epsilon)
//   adam     means   += gain * (g - means),  squares += squares_gain * (g^2 - squares)
//            theta   -= learning_rate * m / (sqrt(s) + epsilon)
//            with m = means / (1 - (1 - gain)^t), and s likewise, at step t = step + 1
//            (Kingma & Ba 2015, Algorithm 1)
// and then average = averaging_decay*average + (1 - averaging_decay)*theta.
//
// All vectors (count), in the order of theta; null pointers and nonfinite_step as in
// momentum_update.cu. A gain is one minus a decay, and log_decay the logarithm of that decay, both
// taken in double by the host: near one a decay in float has lost digits that 1 - decay^t needs.
//
// One thread: four neighbours. What changes from step to step is read from device memory.
// Launcher: kfcnet/ops/cuda/updates.py. Tests: tests/test_kernels_elementwise.py.
// Bytes an element: 28, adam 36, with weight decay 4 more; limited by memory.
#include "vector_load.cuh"

using Four = Vector<float, 4>;

// The gradient with the weight decay's part.
__device__ __forceinline__ Four decayed(const float* gradient, const float* weight_decay,
                                        const Four& place, unsigned first, int count) {
    Four g = load_four(gradient, first, count);
    if (weight_decay) {
        const Four weight = load_four(weight_decay, first, count);
        for (int lane = 0; lane < 4; ++lane) g[lane] += weight[lane] * place[lane];
    }
    return g;
}

// Store theta and fold it into its running average.
__device__ __forceinline__ void move(float* theta, float* average, const Four& place, float decay,
                                     unsigned first, int count) {
    Four mean = load_four(average, first, count);
    for (int lane = 0; lane < 4; ++lane)
        mean[lane] = decay * mean[lane] + (1.0f - decay) * place[lane];
    store_four(theta, first, count, place);
    store_four(average, first, count, mean);
}

extern "C" __global__ void adagrad_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    Four place = load_four(theta, first, count), sum = load_four(squares, first, count);
    const Four g = decayed(gradient, weight_decay, place, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        sum[lane] += g[lane] * g[lane];
        place[lane] -= *learning_rate * g[lane] / (sqrtf(sum[lane]) + epsilon);
    }
    store_four(squares, first, count, sum);
    move(theta, average, place, *averaging_decay, first, count);
}

extern "C" __global__ void rmsprop_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    float gain,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    Four place = load_four(theta, first, count), square = load_four(squares, first, count);
    const Four g = decayed(gradient, weight_decay, place, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        square[lane] += gain * (g[lane] * g[lane] - square[lane]);
        place[lane] -= *learning_rate * g[lane] / (sqrtf(square[lane]) + epsilon);
    }
    store_four(squares, first, count, square);
    move(theta, average, place, *averaging_decay, first, count);
}

extern "C" __global__ void adam_update(
    const float* __restrict__ gradient,            // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ step,            // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ means,                     // (count)
    float* __restrict__ squares,                   // (count)
    float* __restrict__ average,                   // (count)
    int count,
    float gain,
    float log_decay,
    float squares_gain,
    float log_squares_decay,
    float epsilon) {
    const unsigned first = first_of_four();
    if (first >= count || (nonfinite_step && *nonfinite_step >= 0)) return;
    const float t = *step + 1;
    const float rate = *learning_rate / -expm1f(t * log_decay);
    const float correction = 1.0f / -expm1f(t * log_squares_decay);

    Four place = load_four(theta, first, count), mean = load_four(means, first, count);
    Four square = load_four(squares, first, count);
    const Four g = decayed(gradient, weight_decay, place, first, count);
    for (int lane = 0; lane < 4; ++lane) {
        mean[lane] += gain * (g[lane] - mean[lane]);
        square[lane] += squares_gain * (g[lane] * g[lane] - square[lane]);
        place[lane] -= rate * mean[lane] / (sqrtf(square[lane] * correction) + epsilon);
    }
    store_four(means, first, count, mean);
    store_four(squares, first, count, square);
    move(theta, average, place, *averaging_decay, first, count);
}
