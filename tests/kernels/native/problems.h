// Random nodes of the operator: legal ones, and ones with a single fault.
#pragma once

#include <algorithm>
#include <string>

#include "dice.h"
#include "tensor.h"

struct Case {
  Tensor input[mla_opt::kInputCount];
  mla_opt::Attributes attributes{1.0, 1, 0};
  std::string fault;  // what the message of a refusal has to say; empty: the case is legal

  bool has(mla_opt::Input which) const { return input[which].given(); }
};

// Largest product of all sizes: what one case may cost.
constexpr double kMostWork = 3e6;

Case legal_case(Dice& dice);

// Makes one thing wrong, and says which message is expected. False where that fault is impossible
// in this case.
bool break_case(Dice& dice, Case& legal);

std::string described(const Case& problem);
