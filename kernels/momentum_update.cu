// kernels/momentum_update.cu: one step of descent with momentum, over the whole parameter vector.
//
//   descent  = learning_rate * clip_scale * (direction + weight_decay*theta)
//   velocity = momentum*velocity - descent
//   theta   += velocity                         momentum_update
//   theta   += momentum*velocity - descent      nesterov_update, the look-ahead form of Sutskever
//                                               et al. (2013); without clip_scale
//   average  = averaging_decay*average + (1 - averaging_decay)*theta
//
// All vectors (count), in the order of theta. Without weight_decay or clip_scale their term or
// factor is left out. Where nonfinite_step is not negative nothing moves: what led to the first
// non-finite loss stays as it was, to be looked at.
//
// One thread: four neighbours. What changes from step to step is read from device memory, so that
// a captured graph follows it.
// Launcher: kfcnet/ops/cuda/updates.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 28, with weight decay 32; limited by memory.
#include "vector_load.cuh"

using Four = Vector<float, 4>;

template <bool looks_ahead>
__device__ __forceinline__ void update(const float* direction, const float* weight_decay,
                                       float rate, float momentum, float averaging_decay,
                                       float* theta, float* velocity, float* average, int count) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Four down = load_four(direction, first, count), place = load_four(theta, first, count);
    Four speed = load_four(velocity, first, count), mean = load_four(average, first, count);
    if (weight_decay) {
        const Four weight = load_four(weight_decay, first, count);
        for (int lane = 0; lane < 4; ++lane) down[lane] += weight[lane] * place[lane];
    }
    for (int lane = 0; lane < 4; ++lane) {
        speed[lane] = momentum * speed[lane] - rate * down[lane];
        place[lane] += looks_ahead ? momentum * speed[lane] - rate * down[lane] : speed[lane];
        mean[lane] = averaging_decay * mean[lane] + (1.0f - averaging_decay) * place[lane];
    }
    store_four(velocity, first, count, speed);
    store_four(theta, first, count, place);
    store_four(average, first, count, mean);
}

extern "C" __global__ void momentum_update(
    const float* __restrict__ direction,           // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ momentum,            // (1)
    const float* __restrict__ clip_scale,          // or null: (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ velocity,                  // (count)
    float* __restrict__ average,                   // (count)
    int count) {
    if (nonfinite_step && *nonfinite_step >= 0) return;
    const float rate = clip_scale ? *learning_rate * *clip_scale : *learning_rate;
    update<false>(direction, weight_decay, rate, *momentum, *averaging_decay, theta, velocity,
                  average, count);
}

extern "C" __global__ void nesterov_update(
    const float* __restrict__ direction,           // (count)
    const float* __restrict__ weight_decay,        // or null: (count)
    const float* __restrict__ learning_rate,       // (1)
    const float* __restrict__ momentum,            // (1)
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ theta,                     // (count)
    float* __restrict__ velocity,                  // (count)
    float* __restrict__ average,                   // (count)
    int count) {
    if (nonfinite_step && *nonfinite_step >= 0) return;
    update<true>(direction, weight_decay, *learning_rate, *momentum, *averaging_decay, theta,
                 velocity, average, count);
}
