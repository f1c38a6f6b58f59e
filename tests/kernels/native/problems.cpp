#include "problems.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "../../../mla_opt/kernels/cpu/quantized_rows.h"

using namespace mla_opt;

namespace {

const char* const kNames[kInputCount] = {"query", "latent", "cache",     "past_len",
                                         "bias",  "sink",   "rope_cache"};

struct Sizes {
  int64_t batch, heads, query, fresh, cache, rank, rope;

  int64_t total(bool in_place) const { return in_place ? cache : cache + fresh; }
  double work() const {
    return static_cast<double>(batch) * static_cast<double>(heads * query + 1) *
           static_cast<double>(cache + fresh + 1) * static_cast<double>(rank + rope);
  }
};

// Around the sizes of vectors, of blocks of keys and of tasks; seldom nothing at all.
Sizes draw_sizes(Dice& dice) {
  const auto seldom_none = [&](int64_t size) { return dice.one_in(40) ? 0 : size; };
  Sizes sizes;
  do {
    sizes.batch = seldom_none(dice.of({1, 1, 2, 3}));
    sizes.heads = seldom_none(dice.of({1, 2, 3, 5, 8, 16, 20, 33}));
    sizes.query = seldom_none(dice.of({1, 1, 2, 3, 5, 17, 64}));
    sizes.fresh = dice.one_in(4) ? dice.below(6) : sizes.query;
    sizes.cache = dice.of({0, 1, 2, 3, 5, 15, 31, 32, 33, 95, 96, 97, 127, 128, 129, 255, 300, 700});
    sizes.rank = dice.of({1, 2, 3, 5, 6, 8, 15, 16, 17, 31, 32, 33, 64, 96, 160, 256, 512});
    sizes.rope = dice.of({0, 0, 1, 2, 3, 4, 7, 8, 16, 32, 64});
  } while (sizes.work() > kMostWork);
  return sizes;
}

struct Types {
  int32_t query, cache;
};

Types draw_types(Dice& dice) {
  const Types all[] = {{MLA_OPT_FLOAT32, MLA_OPT_FLOAT32},   {MLA_OPT_FLOAT16, MLA_OPT_FLOAT16},
                       {MLA_OPT_BFLOAT16, MLA_OPT_BFLOAT16}, {MLA_OPT_FLOAT64, MLA_OPT_FLOAT64},
                       {MLA_OPT_FLOAT32, MLA_OPT_FLOAT16},   {MLA_OPT_FLOAT32, MLA_OPT_BFLOAT16},
                       {MLA_OPT_FLOAT32, MLA_OPT_INT8},
                       {MLA_OPT_FLOAT32, MLA_OPT_FLOAT8E4M3FN}};
  return all[dice.below(8)];
}

void fill_normal(Dice& dice, Tensor& tensor) {
  for (int64_t i = 0; i < tensor.count(); ++i) set_value(tensor, i, dice.between(-1.0, 1.0));
}

// The lowest number of the type, which is a number like any other. Not for float16: what is left of
// a score beside -65504 depends on the precision of the sum.
double draw_bias(Dice& dice, int32_t type) {
  if (dice.one_in(3)) return -std::numeric_limits<double>::infinity();
  if (dice.one_in(30) && type != MLA_OPT_FLOAT16)
    return type == MLA_OPT_BFLOAT16 ? -0x1.fep127 : double{std::numeric_limits<float>::lowest()};
  return dice.between(-2.0, 2.0);
}

Tensor make_bias(Dice& dice, int32_t type, const Sizes& sizes, bool in_place) {
  const int64_t full[] = {sizes.batch, sizes.heads, sizes.query, sizes.total(in_place)};
  std::vector<int64_t> dims;
  for (int64_t axis = dice.below(4); axis < 4; ++axis)
    dims.push_back(dice.one_in(2) ? 1 : full[axis]);
  Tensor bias = make_tensor(dice.one_in(3) ? int32_t{MLA_OPT_BOOL} : type, dims);
  for (int64_t i = 0; i < bias.count(); ++i)
    set_value(bias, i, bias.type == MLA_OPT_BOOL ? double(!dice.one_in(3)) : draw_bias(dice, type));
  return bias;
}

Tensor make_past_len(Dice& dice, const Sizes& sizes) {
  Tensor lengths = make_tensor(kInt32, {sizes.batch});
  for (int64_t i = 0; i < sizes.batch; ++i)
    set_value(lengths, i, static_cast<double>(dice.below(sizes.cache - sizes.fresh + 1)));
  return lengths;
}

// Rows that are not valid hold numbers that nobody can overlook.
void fill_rows(Dice& dice, Tensor& rows, const Tensor& past_len) {
  fill_normal(dice, rows);
  if (!past_len.given()) return;
  const int64_t length = rows.dims[2], width = rows.dims[3];
  for (int64_t row = 0; row < rows.dims[0] * length; ++row)
    if (static_cast<double>(row % length) >= value_at(past_len, row / length))
      for (int64_t i = 0; i < width; ++i) set_value(rows, row * width + i, 3e4);
}

// The same for rows of codes, whose scales make numbers below 1 of them.
void fill_codes(Dice& dice, Tensor& codes, Tensor& beside, int64_t rope, const Tensor& past_len) {
  const double most = codes.type == MLA_OPT_INT8 ? 127.0 : 448.0;
  const int64_t rows = codes.dims[0] * codes.dims[2], rank = codes.dims[3], width = beside.dims[3];
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = row % codes.dims[2], sequence = row / codes.dims[2];
    const bool is_valid =
        !past_len.given() || static_cast<double>(place) < value_at(past_len, sequence);
    for (int64_t i = 0; i < rank; ++i)
      set_value(codes, row * rank + i, std::round(dice.between(-most, most)));
    for (int64_t i = 0; i < width; ++i)
      set_value(beside, row * width + i,
                is_valid ? dice.between(-1.0, 1.0) / (i < rope ? 1.0 : most) : 3e4);
  }
}

struct Presence {
  bool latent, cache, in_place, split, even;
};

// Makes what was drawn legal.
Presence draw_presence(Dice& dice, Sizes& sizes) {
  Presence has{!dice.one_in(6), !dice.one_in(4), dice.one_in(2), dice.one_in(2), dice.one_in(3)};
  has.cache = has.cache || !has.latent;
  has.in_place = has.in_place && has.cache;
  const int64_t width = sizes.rank + sizes.rope;
  has.even = has.even && has.cache && width % 2 == 0 && width / 2 != sizes.rank;
  has.split = has.even || (has.split && has.cache && sizes.rope > 0);
  if (!has.latent) sizes.fresh = 0;
  if (!has.cache) sizes.cache = 0;
  if (has.in_place) sizes.cache += sizes.fresh;
  if (sizes.cache + sizes.fresh == 0) (has.cache ? sizes.cache : sizes.fresh) = 1;
  return has;
}

}  // namespace

Case legal_case(Dice& dice) {
  Sizes sizes = draw_sizes(dice);
  Presence has = draw_presence(dice, sizes);
  const Types types = draw_types(dice);
  const bool quantized = is_quantized(types.cache);
  has.even = has.even && !quantized;
  has.split = (has.split && (has.even || sizes.rope > 0)) || (quantized && has.cache);
  const int64_t width = sizes.rank + sizes.rope;
  Case drawn;
  drawn.attributes = {dice.of({-1, 0, 1, 1, 1, 2}) * 0.5, sizes.rank,
                      static_cast<int32_t>(dice.below(2))};
  Tensor* in = drawn.input;
  in[kQuery] = make_tensor(types.query, {sizes.batch, sizes.heads, sizes.query, width});
  fill_normal(dice, in[kQuery]);
  if (has.in_place) in[kPastLen] = make_past_len(dice, sizes);
  if (has.latent) {
    in[kLatent] = make_tensor(types.query, {sizes.batch, 1, sizes.fresh, width});
    fill_normal(dice, in[kLatent]);
  }
  if (has.cache) {
    const int64_t kept = has.even ? width / 2 : has.split ? sizes.rank : width;
    in[kCache] = make_tensor(types.cache, {sizes.batch, 1, sizes.cache, kept});
    if (!quantized) fill_rows(dice, in[kCache], in[kPastLen]);
  }
  if (has.split) {
    const int64_t beside =
        has.even ? width / 2 : width_beside(types.cache, sizes.rank, sizes.rope);
    in[kRopeCache] =
        make_tensor(type_beside(types.cache), {sizes.batch, 1, sizes.cache, beside});
    if (quantized)
      fill_codes(dice, in[kCache], in[kRopeCache], sizes.rope, in[kPastLen]);
    else
      fill_rows(dice, in[kRopeCache], in[kPastLen]);
  }
  if (dice.one_in(2)) in[kBias] = make_bias(dice, types.query, sizes, has.in_place);
  if (dice.one_in(3)) {
    in[kSink] = make_tensor(types.query, {sizes.heads});
    fill_normal(dice, in[kSink]);
  }
  return drawn;
}

// ---- faults ---------------------------------------------------------------------------------------

namespace {

// The same input with other dims; its memory has their size.
void reshape(Case& c, Input which, std::vector<int64_t> dims) {
  c.input[which] = make_tensor(c.input[which].type, std::move(dims));
}

bool is_rows(int64_t which) { return which == kLatent || which == kCache || which == kRopeCache; }

bool wrong_rank(Dice& dice, Case& c) {
  const auto which = static_cast<Input>(dice.below(kInputCount));
  if (!c.has(which)) return false;
  std::vector<int64_t> dims = c.input[which].dims;
  if (dims.size() == 1 || dice.one_in(2))
    // More than the host keeps, too.
    dims.insert(dims.end(), which == kBias || dice.one_in(4) ? 9 : 1, 1);
  else if (which == kBias)
    dims.clear();
  else
    dims.pop_back();
  reshape(c, which, dims);
  c.fault = std::string(kNames[which]) + " has rank " + std::to_string(dims.size()) + ", expected";
  return true;
}

bool wrong_rows(Dice& dice, Case& c) {
  const int64_t which = dice.below(kInputCount);
  if (!is_rows(which) || !c.input[which].given()) return false;
  std::vector<int64_t> dims = c.input[which].dims;
  const int64_t axis = dice.of({0, 1, 3});
  // A half of another width is taken for c_kv.
  if (axis == 3 && which == kCache && c.has(kRopeCache) &&
      dims[3] == c.input[kRopeCache].dims[3])
    return false;
  const char* const what[] = {"batch", "axis 1", "rows", "width"};
  const int64_t expected = dims[axis];
  dims[axis] += dims[axis] > 0 && dice.one_in(2) ? -1 : 1;
  reshape(c, static_cast<Input>(which), dims);
  c.fault = std::string(kNames[which]) + " has " + what[axis] + " " + std::to_string(dims[axis]) +
            ", expected " + std::to_string(expected);
  return true;
}

bool wrong_rope_rows(Dice&, Case& c) {
  if (!c.has(kRopeCache)) return false;
  std::vector<int64_t> dims = c.input[kRopeCache].dims;
  const int64_t rows = dims[2]++;
  reshape(c, kRopeCache, dims);
  c.fault = "rope_cache has " + std::to_string(rows + 1) + " rows, cache has " + std::to_string(rows);
  return true;
}

bool wrong_vector(Dice& dice, Case& c) {
  const Input which = dice.one_in(2) ? kPastLen : kSink;
  if (!c.has(which)) return false;
  const int64_t size = c.input[which].dims[0];
  reshape(c, which, {size + 1});
  c.fault = std::string(kNames[which]) + " has " + std::to_string(size + 1) +
            " elements, expected " + std::to_string(size);
  return true;
}

bool wrong_bias_size(Dice& dice, Case& c) {
  if (!c.has(kBias)) return false;
  std::vector<int64_t> dims = c.input[kBias].dims;
  const auto axis = static_cast<size_t>(dice.below(static_cast<int64_t>(dims.size())));
  dims[axis] += 1000;
  reshape(c, kBias, dims);
  c.fault = "bias has size " + std::to_string(dims[axis]) + " on axis " +
            std::to_string(axis + 4 - dims.size());
  return true;
}

bool wrong_bias_type(Dice& dice, Case& c) {
  if (!c.has(kBias)) return false;
  const int32_t other =
      c.input[kQuery].type == MLA_OPT_FLOAT32 ? MLA_OPT_FLOAT64 : MLA_OPT_FLOAT32;
  c.input[kBias] = make_tensor(dice.one_in(2) ? kInt32 : other, c.input[kBias].dims);
  c.fault = "bias is ";
  return true;
}

bool wrong_cache_type(Dice&, Case& c) {
  if (!c.has(kCache) || is_quantized(c.input[kCache].type)) return false;
  const int32_t other =
      c.input[kQuery].type == MLA_OPT_FLOAT64 ? MLA_OPT_FLOAT32 : MLA_OPT_FLOAT64;
  c.input[kCache] = make_tensor(other, c.input[kCache].dims);
  if (c.has(kRopeCache)) c.input[kRopeCache] = make_tensor(other, c.input[kRopeCache].dims);
  c.fault = "cache is ";
  return true;
}

// Beside codes there is bfloat16, and beside that there are no codes.
bool wrong_type_beside(Dice& dice, Case& c) {
  if (!c.has(kRopeCache)) return false;
  const bool codes = is_quantized(c.input[kCache].type);
  const int32_t other = codes || dice.one_in(2) ? MLA_OPT_FLOAT16 : MLA_OPT_INT8;
  if (c.input[kRopeCache].type == other) return false;
  c.input[kRopeCache] = make_tensor(other, c.input[kRopeCache].dims);
  c.fault = "rope_cache is ";
  return true;
}

bool scales_missing(Dice&, Case& c) {
  if (!c.has(kCache) || !is_quantized(c.input[kCache].type)) return false;
  c.input[kRopeCache] = Tensor{};
  c.fault = "rope_cache, which holds the scales";
  return true;
}

bool wrong_length(Dice& dice, Case& c) {
  if (!c.has(kPastLen) || c.input[kPastLen].count() == 0) return false;
  const int64_t sequence = dice.below(c.input[kPastLen].count());
  const int64_t fresh = c.has(kLatent) ? c.input[kLatent].dims[2] : 0;
  const int64_t room = c.input[kCache].dims[2] - fresh;
  const int64_t past = dice.of({-1, room + 1, std::numeric_limits<int32_t>::min(),
                                std::numeric_limits<int32_t>::max()});
  set_value(c.input[kPastLen], sequence, static_cast<double>(past));
  c.fault = "past_len[" + std::to_string(sequence) + "] is " + std::to_string(past);
  return true;
}

// A buffer with less room than there are new rows.
bool wrong_room(Dice&, Case& c) {
  if (!c.has(kPastLen) || !c.has(kLatent) || c.input[kPastLen].count() == 0) return false;
  const int64_t room = c.input[kCache].dims[2];
  std::vector<int64_t> dims = c.input[kLatent].dims;
  dims[2] = room + 1;
  reshape(c, kLatent, dims);
  c.fault = "past_len[0] is ";
  return true;
}

bool wrong_rank_attribute(Dice& dice, Case& c) {
  const int64_t width = c.input[kQuery].dims[3];
  c.attributes.kv_lora_rank =
      dice.of({0, -1, width + 1, std::numeric_limits<int64_t>::max()});
  c.fault = "kv_lora_rank is " + std::to_string(c.attributes.kv_lora_rank);
  return true;
}

bool wrong_scale(Dice& dice, Case& c) {
  c.attributes.scale = dice.one_in(2) ? std::numeric_limits<double>::quiet_NaN()
                                      : -std::numeric_limits<double>::infinity();
  c.fault = "scale is ";
  return true;
}

bool nothing_to_attend_to(Dice&, Case& c) {
  for (const Input which : {kLatent, kCache, kPastLen, kRopeCache}) c.input[which] = Tensor{};
  c.fault = "neither latent nor cache";
  return true;
}

bool no_rows(Dice&, Case& c) {
  if (c.has(kBias)) return false;
  for (const Input which : {kLatent, kCache, kRopeCache}) {
    if (!c.has(which)) continue;
    std::vector<int64_t> dims = c.input[which].dims;
    dims[2] = 0;
    reshape(c, which, dims);
  }
  if (c.has(kPastLen)) reshape(c, kPastLen, c.input[kPastLen].dims);  // all zero
  c.fault = "latent and cache have 0 rows";
  return true;
}

bool half_a_cache(Dice&, Case& c) {
  if (!c.has(kLatent) || !(c.has(kPastLen) || c.has(kRopeCache))) return false;
  c.input[kCache] = Tensor{};
  c.fault = c.has(kPastLen) ? "past_len is given without the cache" : "rope_cache is given without";
  return true;
}

bool rope_of_no_width(Dice&, Case& c) {
  if (c.has(kRopeCache) || !c.has(kCache) ||
      c.input[kQuery].dims[3] != c.attributes.kv_lora_rank)
    return false;
  std::vector<int64_t> dims = c.input[kCache].dims;
  dims[3] = 0;
  c.input[kRopeCache] = make_tensor(c.input[kCache].type, dims);
  c.fault = "rope_cache is given, but query has 0 dims";
  return true;
}

using Fault = bool (*)(Dice&, Case&);
const Fault kFaults[] = {
    wrong_rank,      wrong_rows,       wrong_rope_rows, wrong_vector,         wrong_bias_size,
    wrong_bias_type, wrong_cache_type, wrong_length,    wrong_rank_attribute, wrong_scale,
    no_rows,         half_a_cache,     wrong_room,      nothing_to_attend_to, rope_of_no_width,
    scales_missing,  wrong_type_beside,
};

}  // namespace

bool break_case(Dice& dice, Case& legal) {
  return kFaults[dice.below(static_cast<int64_t>(std::size(kFaults)))](dice, legal);
}

std::string described(const Case& c) {
  std::string text = "scale " + std::to_string(c.attributes.scale) + ", kv_lora_rank " +
                     std::to_string(c.attributes.kv_lora_rank) + ", causal " +
                     std::to_string(c.attributes.causal);
  for (int i = 0; i < kInputCount; ++i) {
    if (!c.input[i].given()) continue;
    text += std::string(", ") + kNames[i] + " type " + std::to_string(c.input[i].type) + " [";
    for (const int64_t dim : c.input[i].dims) text += " " + std::to_string(dim);
    text += " ]";
  }
  return c.fault.empty() ? text : text + ", fault: " + c.fault;
}
