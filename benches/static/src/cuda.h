// What naga's Metal text is made of, in CUDA. Functions are the fast ones of the hardware, as in a Vulkan driver.
typedef unsigned int uint;
#define device
#define thread
#define threadgroup
#define constant const

namespace metal {
typedef ::uint uint;

template<class T> struct alignas(2 * sizeof(T)) Two {
    T x, y;
    constexpr Two() = default;
    constexpr Two(T s) : x(s), y(s) {}
    constexpr Two(T a, T b) : x(a), y(b) {}
    template<class U> constexpr explicit Two(Two<U> v) : x(T(v.x)), y(T(v.y)) {}
    T& operator[](uint i) { return i == 0 ? x : y; }
    const T& operator[](uint i) const { return i == 0 ? x : y; }
};

template<class T> struct alignas(4 * sizeof(T)) Three {
    T x, y, z;
    constexpr Three() = default;
    constexpr Three(T s) : x(s), y(s), z(s) {}
    constexpr Three(T a, T b, T c) : x(a), y(b), z(c) {}
    T& operator[](uint i) { return i == 0 ? x : i == 1 ? y : z; }
    const T& operator[](uint i) const { return i == 0 ? x : i == 1 ? y : z; }
};

template<class T> struct alignas(4 * sizeof(T)) Four {
    T x, y, z, w;
    constexpr Four() = default;
    constexpr Four(T s) : x(s), y(s), z(s), w(s) {}
    constexpr Four(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
    constexpr Four(Two<T> a, Two<T> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    constexpr Four(Two<T> a, T c, T d) : x(a.x), y(a.y), z(c), w(d) {}
    constexpr Four(Three<T> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
    template<class U> constexpr explicit Four(Four<U> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
    T& operator[](uint i) { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
    const T& operator[](uint i) const { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
    constexpr Two<T> xy() const { return {x, y}; }
    constexpr Two<T> zw() const { return {z, w}; }
    constexpr Two<T> xz() const { return {x, z}; }
    constexpr Two<T> yw() const { return {y, w}; }
    constexpr Three<T> xyz() const { return {x, y, z}; }
};

// A number of 16 bits, which is only ever widened.
struct half {
    unsigned short bits;
    explicit operator float() const {
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(bits));
        return wide;
    }
};

typedef Two<float> float2;
typedef Two<int> int2;
typedef Two<uint> uint2;
typedef Two<bool> bool2;
typedef Three<float> float3;
typedef Three<uint> uint3;
typedef Four<float> float4;
typedef Four<int> int4;
typedef Four<uint> uint4;
typedef Four<bool> bool4;
typedef Four<half> half4;

#define BINARY(o, R) \
    template<class T> Two<R> operator o(Two<T> a, Two<T> b) { return {R(a.x o b.x), R(a.y o b.y)}; } \
    template<class T> Two<R> operator o(Two<T> a, T b) { return a o Two<T>(b); } \
    template<class T> Two<R> operator o(T a, Two<T> b) { return Two<T>(a) o b; } \
    template<class T> Three<R> operator o(Three<T> a, Three<T> b) { return {R(a.x o b.x), R(a.y o b.y), R(a.z o b.z)}; } \
    template<class T> Three<R> operator o(Three<T> a, T b) { return a o Three<T>(b); } \
    template<class T> Three<R> operator o(T a, Three<T> b) { return Three<T>(a) o b; } \
    template<class T> Four<R> operator o(Four<T> a, Four<T> b) { return {R(a.x o b.x), R(a.y o b.y), R(a.z o b.z), R(a.w o b.w)}; } \
    template<class T> Four<R> operator o(Four<T> a, T b) { return a o Four<T>(b); } \
    template<class T> Four<R> operator o(T a, Four<T> b) { return Four<T>(a) o b; }
BINARY(+, T) BINARY(-, T) BINARY(*, T) BINARY(/, T) BINARY(%, T)
BINARY(&, T) BINARY(|, T) BINARY(^, T) BINARY(<<, T) BINARY(>>, T)
BINARY(<, bool) BINARY(<=, bool) BINARY(>, bool) BINARY(>=, bool) BINARY(==, bool) BINARY(!=, bool)

#define UNARY(o) \
    template<class T> Two<T> operator o(Two<T> a) { return {o a.x, o a.y}; } \
    template<class T> Three<T> operator o(Three<T> a) { return {o a.x, o a.y, o a.z}; } \
    template<class T> Four<T> operator o(Four<T> a) { return {o a.x, o a.y, o a.z, o a.w}; }
UNARY(-) UNARY(~) UNARY(!)

// A function of numbers, and of vectors part by part.
#define OF_ONE(f) \
    template<class T> Two<T> f(Two<T> a) { return {f(a.x), f(a.y)}; } \
    template<class T> Three<T> f(Three<T> a) { return {f(a.x), f(a.y), f(a.z)}; } \
    template<class T> Four<T> f(Four<T> a) { return {f(a.x), f(a.y), f(a.z), f(a.w)}; }
#define OF_TWO(f) \
    template<class T> Two<T> f(Two<T> a, Two<T> b) { return {f(a.x, b.x), f(a.y, b.y)}; } \
    template<class T> Three<T> f(Three<T> a, Three<T> b) { return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z)}; } \
    template<class T> Four<T> f(Four<T> a, Four<T> b) { return {f(a.x, b.x), f(a.y, b.y), f(a.z, b.z), f(a.w, b.w)}; }
#define OF_THREE(f) \
    template<class T> Four<T> f(Four<T> a, Four<T> b, Four<T> c) { return {f(a.x, b.x, c.x), f(a.y, b.y, c.y), f(a.z, b.z, c.z), f(a.w, b.w, c.w)}; }

inline float abs(float a) { return fabsf(a); }
inline float exp(float a) { return __expf(a); }
inline float log(float a) { return __logf(a); }
inline float sqrt(float a) { return sqrtf(a); }
inline float rsqrt(float a) { return rsqrtf(a); }
inline float floor(float a) { return floorf(a); }
inline float tanh(float a) { return tanhf(a); }
inline float sign(float a) { return a > 0 ? 1.f : a < 0 ? -1.f : 0.f; }
inline uint clz(uint a) { return __clz(a); }
inline float simd_sum(float a) {
    for (int lanes = 16; lanes > 0; lanes /= 2) a += __shfl_xor_sync(0xffffffffu, a, lanes);
    return a;
}
OF_ONE(abs) OF_ONE(exp) OF_ONE(log) OF_ONE(sqrt) OF_ONE(rsqrt) OF_ONE(floor) OF_ONE(tanh) OF_ONE(sign) OF_ONE(clz) OF_ONE(simd_sum)

inline float min(float a, float b) { return fminf(a, b); }
inline uint min(uint a, uint b) { return ::min(a, b); }
inline int min(int a, int b) { return ::min(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline uint max(uint a, uint b) { return ::max(a, b); }
inline int max(int a, int b) { return ::max(a, b); }
inline float pow(float a, float b) { return __powf(a, b); }
OF_TWO(min) OF_TWO(max) OF_TWO(pow)

template<class T> T clamp(T a, T least, T most) { return min(max(a, least), most); }
inline float fma(float a, float b, float c) { return fmaf(a, b, c); }
OF_THREE(fma)
template<class T> T select(T no, T yes, bool is) { return is ? yes : no; }
template<class T> Two<T> select(Two<T> no, Two<T> yes, bool2 is) { return {is.x ? yes.x : no.x, is.y ? yes.y : no.y}; }
template<class T> Four<T> select(Four<T> no, Four<T> yes, bool4 is) {
    return {is.x ? yes.x : no.x, is.y ? yes.y : no.y, is.z ? yes.z : no.z, is.w ? yes.w : no.w};
}
inline float dot(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Columns.
struct float4x4 {
    float4 a, b, c, d;
    float4x4() = default;
    float4x4(float4 a, float4 b, float4 c, float4 d) : a(a), b(b), c(c), d(d) {}
    float4& operator[](uint i) { return i == 0 ? a : i == 1 ? b : i == 2 ? c : d; }
    const float4& operator[](uint i) const { return i == 0 ? a : i == 1 ? b : i == 2 ? c : d; }
};
inline float4x4 operator+(float4x4 m, float4x4 n) { return {m.a + n.a, m.b + n.b, m.c + n.c, m.d + n.d}; }
inline float4x4 operator-(float4x4 m, float4x4 n) { return {m.a - n.a, m.b - n.b, m.c - n.c, m.d - n.d}; }
inline float4x4 operator*(float4x4 m, float s) { return {m.a * s, m.b * s, m.c * s, m.d * s}; }
inline float4x4 operator*(float s, float4x4 m) { return m * s; }
inline float4 operator*(float4x4 m, float4 v) { return m.a * v.x + m.b * v.y + m.c * v.z + m.d * v.w; }
inline float4x4 operator*(float4x4 m, float4x4 n) { return {m * n.a, m * n.b, m * n.c, m * n.d}; }
inline float4x4 transpose(float4x4 m) {
    return {{m.a.x, m.b.x, m.c.x, m.d.x}, {m.a.y, m.b.y, m.c.y, m.d.y}, {m.a.z, m.b.z, m.c.z, m.d.z}, {m.a.w, m.b.w, m.c.w, m.d.w}};
}

struct packed_uint3 {
    uint x, y, z;
    packed_uint3() = default;
    packed_uint3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    operator uint3() const { return {x, y, z}; }
    uint operator[](uint i) const { return i == 0 ? x : i == 1 ? y : z; }
};

struct atomic_uint { uint value; };
enum memory_order { memory_order_relaxed };
inline uint atomic_load_explicit(const atomic_uint* a, memory_order) { return *(const volatile uint*)&a->value; }
inline void atomic_store_explicit(atomic_uint* a, uint value, memory_order) { *(volatile uint*)&a->value = value; }
inline uint atomic_fetch_add_explicit(atomic_uint* a, uint value, memory_order) { return atomicAdd(&a->value, value); }

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
inline void threadgroup_barrier(mem_flags) { __syncthreads(); }
}

template<class T, class U> T as_type(U from) {
    static_assert(sizeof(T) == sizeof(U), "the same bits");
    T to;
    memcpy(&to, &from, sizeof(T));
    return to;
}
