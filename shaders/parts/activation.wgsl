// The nonlinearities of feed-forward layers.

const GELU: u32 = 0;
const GELU_TANH: u32 = 1;
const QUICK_GELU: u32 = 2;
const SILU: u32 = 3;
const RELU: u32 = 4;
const TANH: u32 = 5;

override FUNCTION: u32 = GELU;

// erfc for x >= 0 to a relative 1.2e-7 (Press et al., Numerical Recipes, 2nd edition, section 6.2).
fn erfc(x: f32) -> f32 {
    let t = 1.0 / (1.0 + 0.5 * x);
    let p = -1.26551223 + t * (1.00002368 + t * (0.37409196 + t * (0.09678418 + t * (-0.18628806
        + t * (0.27886807 + t * (-1.13520398 + t * (1.48851587 + t * (-0.82215223 + t * 0.17087277))))))));
    return t * exp(p - x * x);
}

fn gelu(x: f32) -> f32 {
    // past 13 / sqrt(2) erfc is 0 in f32
    let tail = erfc(min(abs(x), 13.0) * 0.70710678);
    if x < 0.0 {
        return 0.5 * x * tail;
    }
    return 0.5 * x * (2.0 - tail);
}

// The built-in tanh overflows on some drivers.
fn tanh_of(x: f32) -> f32 {
    let e = exp(-2.0 * min(abs(x), 20.0));
    return sign(x) * (1.0 - e) / (1.0 + e);
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-max(x, -80.0)));
}

fn f(x: f32) -> f32 {
    switch FUNCTION {
        case GELU: {
            return gelu(x);
        }
        case GELU_TANH: {
            return 0.5 * x * (1.0 + tanh_of(0.79788456 * (x + 0.044715 * x * x * x)));
        }
        case QUICK_GELU: {
            return x * sigmoid(1.702 * x);
        }
        case SILU: {
            return x * sigmoid(x);
        }
        case RELU: {
            return max(x, 0.0);
        }
        default: {
            return tanh_of(x);
        }
    }
}
