// FlashInfer's kernel as it is read: what it makes of its parameters (flashinfer/attention/mla.cuh of
// 0.7, without a mask), number by number. Ours is what fills them in.
#include <cmath>
#include <limits>
#include <vector>

#include "../../../../mla_opt/kernels/cuda/check.h"
#include "../../../../mla_opt/kernels/flashinfer/params.h"
#include "../../../../mla_opt/kernels/flashinfer/work.cuh"
#include "../native/driver_emulated.h"

namespace mla_opt::cuda {
namespace {

constexpr int kRank = 512, kRope = 64;
int blocks = 1, calls = 0;

template <class Number>
struct Params {
  using DTypeQ = Number;
  Number *q_nope, *q_pe, *ckv, *kpe, *partial_o, *final_o;
  float *partial_lse, *final_lse;
  int32_t *q_indptr, *kv_indptr, *partial_indptr, *merge_packed_offset_start,
      *merge_packed_offset_end, *merge_partial_packed_offset_start,
      *merge_partial_packed_offset_end, *merge_partial_stride, *kv_indices, *q_len, *kv_len,
      *q_start, *kv_start, *kv_end, *work_indptr;
  uint32_t block_size, num_heads;
  uint32_t q_nope_stride_n, q_nope_stride_h, q_pe_stride_n, q_pe_stride_h, ckv_stride_page,
      ckv_stride_n, kpe_stride_page, kpe_stride_n, o_stride_n, o_stride_h;
  float sm_scale;
  bool return_lse_base_on_e;
};

template <class Number>
Number rounded(double value) {
  return {static_cast<uint16_t>(pack(Number{}, static_cast<float>(value), 0.0f) & 0xffff)};
}

// One row of an item: the normalised output, and the logarithm of the sum to base 2.
template <class Number>
float attend_row(const Params<Number>& p, int item, uint32_t packed, std::vector<double>& output) {
  const uint32_t q = packed / p.num_heads, r = packed % p.num_heads;
  const Number* nope = p.q_nope + uint32_t(p.q_indptr[item]) * p.q_nope_stride_n +
                       q * p.q_nope_stride_n + r * p.q_nope_stride_h;
  const Number* pe = p.q_pe + uint32_t(p.q_indptr[item]) * p.q_pe_stride_n + q * p.q_pe_stride_n +
                     r * p.q_pe_stride_h;
  double sum = 0;
  output.assign(kRank, 0.0);
  std::vector<std::pair<double, const Number*>> scored;
  for (int key = p.kv_start[item]; key < p.kv_end[item]; ++key) {
    const uint32_t at = uint32_t(p.kv_indptr[item]) * p.block_size + uint32_t(key);
    const int64_t page = p.kv_indices[at / p.block_size];
    const uint32_t within = at % p.block_size;
    const Number* c = p.ckv + page * p.ckv_stride_page + within * p.ckv_stride_n;
    const Number* k = p.kpe + page * p.kpe_stride_page + within * p.kpe_stride_n;
    double score = 0;
    for (int i = 0; i < kRank; ++i) score += double(to_float(nope[i])) * double(to_float(c[i]));
    for (int i = 0; i < kRope; ++i) score += double(to_float(pe[i])) * double(to_float(k[i]));
    scored.push_back({score * double(p.sm_scale) * 1.4426950408889634, c});
  }
  double most = -std::numeric_limits<double>::infinity();
  for (const auto& [score, row] : scored) most = std::max(most, score);
  for (const auto& [score, row] : scored) {
    const double weight = std::exp2(score - most);
    sum += weight;
    for (int i = 0; i < kRank; ++i) output[size_t(i)] += weight * double(to_float(row[i]));
  }
  for (double& number : output) number /= scored.empty() ? 1.0 : sum;
  return scored.empty() ? -std::numeric_limits<float>::infinity()
                        : static_cast<float>(std::log2(sum) + most);
}

template <class Number>
void attend_item(const Params<Number>& p, int item) {
  std::vector<double> output;
  for (uint32_t row = 0; row < kWorkRows; ++row) {
    const uint32_t packed = uint32_t(p.q_start[item]) + row;
    const uint32_t q = packed / p.num_heads, r = packed % p.num_heads;
    if (q >= uint32_t(p.q_len[item])) return;
    const float lse = attend_row(p, item, packed, output);
    const int32_t part = p.partial_indptr[item];
    if (part != -1) p.partial_lse[uint32_t(part) + row] = lse;
    Number* to = part != -1 ? p.partial_o + (uint32_t(part) + row) * kRank
                            : p.final_o + uint32_t(p.q_indptr[item]) * p.o_stride_n +
                                  q * p.o_stride_n + r * p.o_stride_h;
    for (int i = 0; i < kRank; ++i) to[i] = rounded<Number>(output[size_t(i)]);
  }
}

template <class Number>
void merge(const Params<Number>& p, int block) {
  const uint32_t start = uint32_t(p.merge_packed_offset_start[block]);
  const uint32_t count = uint32_t(p.merge_packed_offset_end[block]) - start;
  for (uint32_t row = 0; row < count; ++row) {
    const uint32_t q = (start + row) / p.num_heads, r = (start + row) % p.num_heads;
    float most = -std::numeric_limits<float>::infinity();
    const auto each = [&](auto use) {
      for (uint32_t part = uint32_t(p.merge_partial_packed_offset_start[block]) + row;
           part < uint32_t(p.merge_partial_packed_offset_end[block]);
           part += uint32_t(p.merge_partial_stride[block]))
        if (p.partial_lse[part] > -std::numeric_limits<float>::infinity()) use(part);
    };
    each([&](uint32_t part) { most = std::max(most, p.partial_lse[part]); });
    std::vector<double> output(kRank, 0.0);
    double sum = 0;
    each([&](uint32_t part) {
      const double weight = std::exp2(double(p.partial_lse[part] - most));
      sum += weight;
      for (uint32_t i = 0; i < kRank; ++i)
        output[i] += weight * double(to_float(p.partial_o[part * kRank + i]));
    });
    Number* to = p.final_o + q * p.o_stride_n + r * p.o_stride_h;
    for (uint32_t i = 0; i < kRank; ++i) to[i] = rounded<Number>(sum > 0 ? output[i] / sum : 0.0);
  }
}

template <class Number>
void run(const Params<Number>& p, int count) {
  for (int block = 0; block < count; ++block)
    for (int item = p.work_indptr[block]; item < p.work_indptr[block + 1]; ++item)
      attend_item(p, item);
  for (int block = 0; block < count; ++block) merge(p, block);
}

}  // namespace

int blocks_at_once() { return blocks; }

bool start_work(const Problem&, const Arguments& arguments, const Work& work,
                const WorkArrays& arrays, void*, mla_opt_failure&) {
  constexpr int count = 2;
  submit([=] {
    for (int block = 0; block < count; ++block)
      emulator::run({block, count, 64, 0, 0}, [=] { plan_work(arguments, work, arrays); });
  });
  return true;
}

bool start_flashinfer(const Problem& p, const Work& work, const WorkArrays& arrays, void*,
                      mla_opt_failure&) {
  ++calls;
  submit([=] {
    if (p.type == MLA_OPT_FLOAT16)
      run(make_params<Params<Half>>(p, arrays), work.blocks);
    else
      run(make_params<Params<BFloat16>>(p, arrays), work.blocks);
  });
  return true;
}

}  // namespace mla_opt::cuda

// For tests: how many blocks run at once from now on, and how often FlashInfer was called.
extern "C" MLA_OPT_PUBLIC void mla_opt_flashinfer_blocks(int blocks) {
  mla_opt::cuda::blocks = blocks;
}
extern "C" MLA_OPT_PUBLIC int mla_opt_flashinfer_calls() { return mla_opt::cuda::calls; }
