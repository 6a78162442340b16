// The product of matrices, so that streams have something to compute: Paddle would wait for the
// stream and compute on the host, and no fault in the order of streams would ever show. It is done
// by the library that Paddle's own CPU kernel calls.

#include <algorithm>

#include "kernels.h"
#include "tensors.h"

extern "C" void cblas_sgemm(int order, int transpose_a, int transpose_b, int m, int n, int k,
                            float alpha, const float* a, int lda, const float* b, int ldb,
                            float beta, float* c, int ldc);

namespace kunlun_sim {
namespace {

constexpr int kRowMajor = 101, kAsItIs = 111, kTransposed = 112;

// The last two axes of dense tensors are matrices, those before them are batches.
struct Matrices {
  View all;
  bool transposed;

  Sizes batches() const { return {all.sizes.begin(), all.sizes.end() - 2}; }
  int stored_rows() const { return int(all.sizes[all.sizes.size() - 2]); }
  int stored_columns() const { return int(all.sizes.back()); }
  int rows() const { return transposed ? stored_columns() : stored_rows(); }
  int columns() const { return transposed ? stored_rows() : stored_columns(); }
  int order() const { return transposed ? kTransposed : kAsItIs; }
  int leading() const { return std::max(1, stored_columns()); }

  Matrices over(const Sizes& batches) const {
    Sizes wanted = batches;
    wanted.insert(wanted.end(), all.sizes.end() - 2, all.sizes.end());
    return {all.broadcast(wanted), transposed};
  }
  float* at(const Sizes& batch) const { return reinterpret_cast<float*>(all.at(batch)); }
};

// A vector is a row on the left and a column on the right, and is not transposed.
Matrices matrices(In tensor, bool transposed, bool left) {
  View view = view_of(tensor);
  if (view.sizes.size() != 1) return {view, transposed};
  const int64_t size = view.sizes[0];
  view.sizes = left ? Sizes{1, size} : Sizes{size, 1};
  view.strides = dense_strides(view.sizes);
  return {view, false};
}

void multiply(const Matrices& a, const Matrices& b, float* c, const Sizes& batches) {
  const int m = a.rows(), n = b.columns(), k = a.columns();
  for_each_place(batches, batches.size(), [&](const Sizes& batch) {
    cblas_sgemm(kRowMajor, a.order(), b.order(), m, n, k, 1, a.at(batch), a.leading(), b.at(batch),
                b.leading(), 0, c, n);
    c += int64_t(m) * n;
  });
}

void matmul(Context context, In x, In y, bool transpose_x, bool transpose_y, Out out) {
  const Matrices a = matrices(x, transpose_x, true), b = matrices(y, transpose_y, false);
  if (a.columns() != b.rows()) refuse("the matrices do not fit");
  const Sizes batches = common_shape({a.batches(), b.batches()});
  Sizes sizes = batches;
  if (ask(PD_TensorGetNumDims, x) > 1) sizes.push_back(a.rows());
  if (ask(PD_TensorGetNumDims, y) > 1) sizes.push_back(b.columns());
  reshape(out, sizes, dense_strides(sizes), 0);  // Paddle leaves broadcasting to its kernels
  allocate(context, out, FLOAT32);
  const View to = view_of(out);
  if (!count(to.sizes)) return;
  auto* c = reinterpret_cast<float*>(to.data);
  submit(context, "matmul", [a = a.over(batches), b = b.over(batches), c, batches] {
    multiply(a, b, c, batches);
  });
}

}  // namespace

void* matmul_kernel() { return reinterpret_cast<void*>(matmul); }

}  // namespace kunlun_sim
