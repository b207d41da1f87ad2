// A libcublas for machines without a GPU: its products, over the driver beside.
//
// It is stricter than the library: matrices have to lie within one allocation of the device. Work is done when the
// driver comes to it in its stream, as late as that likes.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#define API extern "C" __attribute__((visibility("default"))) int

extern "C" int cuLaunchHostFunc(void* stream, void (*function)(void*), void* data);
extern "C" int cuMemGetAddressRange_v2(unsigned long long* begin, size_t* bytes, unsigned long long address);
extern "C" int cuCtxGetCurrent(void** context);

namespace {

enum Status : int { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, EXECUTION_FAILED = 13, NOT_SUPPORTED = 15 };
constexpr int F32 = 0, BF16 = 14, COMPUTE_32F = 68;

struct Handle {
    void* stream = nullptr;
};

// Matrices of a batch, column by column.
struct Matrices {
    const char* begin;
    int type, leading;
    long long apart;
    bool transposed;

    size_t element_bytes() const { return type == BF16 ? 2 : 4; }
    float at(long long matrix, int row, int column) const {
        if (transposed) std::swap(row, column);
        const size_t place = static_cast<size_t>(matrix * apart + static_cast<long long>(column) * leading + row);
        if (type == F32) {
            float value;
            std::memcpy(&value, begin + 4 * place, 4);
            return value;
        }
        uint16_t half;
        std::memcpy(&half, begin + 2 * place, 2);
        const uint32_t bits = static_cast<uint32_t>(half) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};

// Whether so many matrices of `rows` stored rows and `columns` stored columns lie within one allocation.
bool lies_within(const char* name, const Matrices& of, int rows, int columns, int batch) {
    const auto begin = reinterpret_cast<unsigned long long>(of.begin);
    const size_t end = static_cast<size_t>((batch - 1) * of.apart + static_cast<long long>(columns - 1) * of.leading + rows);
    unsigned long long base = 0;
    size_t bytes = 0;
    if (cuMemGetAddressRange_v2(&base, &bytes, begin) || begin - base + end * of.element_bytes() > bytes) {
        std::fprintf(stderr, "fake cuBLAS: %s is not within an allocation of the device\n", name);
        return false;
    }
    return rows <= of.leading;
}

struct Product {
    int m, n, k, batch;
    float alpha, beta;
    Matrices a, b, c;

    void run() const {
        const auto rows = static_cast<size_t>(m), columns = static_cast<size_t>(n), terms = static_cast<size_t>(k);
        std::vector<float> left(rows * terms), right(columns * terms);
        for (int matrix = 0; matrix < batch; matrix++) {
            for (size_t row = 0; row < rows; row++) {
                for (size_t i = 0; i < terms; i++) left[row * terms + i] = a.at(matrix, int(row), int(i));
            }
            for (size_t column = 0; column < columns; column++) {
                for (size_t i = 0; i < terms; i++) right[column * terms + i] = b.at(matrix, int(i), int(column));
            }
            for (size_t column = 0; column < columns; column++) {
                for (size_t row = 0; row < rows; row++) {
                    // What is multiplied by nothing is not read: it may be anything.
                    float value = alpha * dot(&left[row * terms], &right[column * terms], terms);
                    if (beta != 0) value += beta * c.at(matrix, int(row), int(column));
                    const auto place = matrix * c.apart + static_cast<long long>(column) * c.leading + static_cast<long long>(row);
                    std::memcpy(const_cast<char*>(c.begin) + 4 * place, &value, 4);
                }
            }
        }
    }

    static float dot(const float* one, const float* other, size_t count) {
        float sums[8] = {};
        size_t i = 0;
        for (; i + 8 <= count; i += 8) {
            for (size_t lane = 0; lane < 8; lane++) sums[lane] += one[i + lane] * other[i + lane];
        }
        for (; i < count; i++) sums[0] += one[i] * other[i];
        float sum = 0;
        for (float lane : sums) sum += lane;
        return sum;
    }
};

}  // namespace

API cublasCreate_v2(Handle** handle) {
    void* context = nullptr;
    if (std::getenv("FAKE_CUBLAS_FAILS") || cuCtxGetCurrent(&context) || !context) return NOT_INITIALIZED;
    *handle = new Handle;
    return SUCCESS;
}

API cublasDestroy_v2(Handle* handle) { return delete handle, SUCCESS; }

API cublasSetStream_v2(Handle* handle, void* stream) { return handle->stream = stream, SUCCESS; }

API cublasGemmStridedBatchedEx(Handle* handle, int of_a, int of_b, int m, int n, int k, const void* alpha,
                               const void* a, int a_type, int a_leading, long long a_apart, const void* b,
                               int b_type, int b_leading, long long b_apart, const void* beta, void* c,
                               int c_type, int c_leading, long long c_apart, int batch, int compute, int) {
    auto begin = [](const void* at) { return static_cast<const char*>(at); };
    auto* product = new Product{m,
                                n,
                                k,
                                batch,
                                *static_cast<const float*>(alpha),
                                *static_cast<const float*>(beta),
                                {begin(a), a_type, a_leading, a_apart, of_a == 1},
                                {begin(b), b_type, b_leading, b_apart, of_b == 1},
                                {begin(c), c_type, c_leading, c_apart, false}};
    const bool known = a_type == b_type && (a_type == F32 || a_type == BF16) && c_type == F32 && compute == COMPUTE_32F;
    if (!known) return delete product, NOT_SUPPORTED;
    const bool within = m > 0 && n > 0 && k > 0 && batch > 0 &&
                        lies_within("A", product->a, of_a ? k : m, of_a ? m : k, batch) &&
                        lies_within("B", product->b, of_b ? n : k, of_b ? k : n, batch) &&
                        lies_within("C", product->c, m, n, batch);
    if (!within) return delete product, INVALID_VALUE;
    auto run = [](void* data) {
        auto* product = static_cast<Product*>(data);
        product->run();
        delete product;
    };
    return cuLaunchHostFunc(handle->stream, run, product) ? EXECUTION_FAILED : SUCCESS;
}
