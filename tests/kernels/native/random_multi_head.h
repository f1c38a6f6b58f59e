// Random problems of multi-head latent attention against the definition, in plain loops over doubles.
#pragma once

#include <string>

#include "dice.h"
#include "hosts.h"

// What is wrong with one random problem; empty: nothing.
std::string run_multi_head(Dice& dice, Host& host);
