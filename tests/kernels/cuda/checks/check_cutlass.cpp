// What wgmma is told, and where a warpgroup's tile lies in shared memory, against CUTLASS: its
// descriptors, its swizzle and its fragments. Prints what differs; no GPU runs.
#include <cstdio>
#include <cute/tensor.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

#include "../../../../mla_opt/kernels/cuda/attend.cuh"

namespace ours = mla_opt::cuda;
using namespace cute;
using Number = cutlass::bfloat16_t;
using Shape512 = ours::Config<ours::BFloat16, 512, 64, ours::Width::kWarpgroups, ours::Memory::kLarge>;

alignas(1024) Number memory[64 * 576];
int wrong = 0;

void expect(const char* what, bool holds) {
  if (holds) return;
  std::printf("%s differs\n", what);
  ++wrong;
}

int offset_of(const Number& element) {
  return static_cast<int>(reinterpret_cast<const char*>(&element) -
                          reinterpret_cast<const char*>(memory));
}

int main() {
  const auto keys = tile_to_shape(GMMA::Layout_K_SW128_Atom<Number>{},
                                  make_shape(Int<64>{}, Int<576>{}));
  const auto values = tile_to_shape(GMMA::Layout_MN_SW128_Atom<Number>{},
                                    make_shape(Int<512>{}, Int<64>{}), Step<_2, _1>{});
  const auto as_keys = make_tensor(make_smem_ptr(memory), keys);
  const auto as_values = make_tensor(make_smem_ptr(memory), values);
  bool same = true;
  for (int row = 0; row < 64; ++row)
    for (int column = 0; column < 576; ++column) {
      const int at = static_cast<int>(ours::chunk_address<Shape512>(0, 64, row, column / 8)) +
                     column % 8 * 2;
      same = same && at == offset_of(as_keys(row, column));
      if (column < 512) same = same && at == offset_of(as_values(column, row));
    }
  expect("the place of an element", same);

  // Of address 0: what the others add to it is checked by the places above.
  const auto key_part = local_tile(make_tensor(make_smem_ptr((Number*)nullptr), keys),
                                   make_shape(Int<32>{}, Int<16>{}), make_coord(0, 0));
  const auto value_part = local_tile(make_tensor(make_smem_ptr((Number*)nullptr), values),
                                     make_shape(Int<256>{}, Int<16>{}), make_coord(0, 0));
  expect("the descriptor of keys",
         SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::K>(key_part).desc_ ==
             ours::matrix_descriptor(0, 16, ours::kEightRows));
  expect("the descriptor of values",
         SM90::GMMA::make_gmma_desc<SM90::GMMA::Major::MN>(value_part).desc_ ==
             ours::matrix_descriptor(0, 64 * ours::kSwizzledRow, ours::kEightRows));

  using Product = SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<GMMA::Major::K, GMMA::Major::MN>;
  const auto sums = typename MMA_Traits<Product>::CLayout{};
  same = true;
  for (int thread = 0; thread < 128; ++thread)
    for (int i = 0; i < 128; ++i) {
      const int lane = thread % 32;
      const int row = 16 * (thread / 32) + lane / 4 + 8 * (i % 4 / 2);
      const int column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
      same = same && static_cast<int>(sums(thread, i)) == row + 64 * column;
    }
  expect("the fragment of sums", same);
  std::printf("%d differences\n", wrong);
  return wrong;
}
