// Random products with a matrix of few bits against plain loops over doubles.
#pragma once

#include <string>

#include "dice.h"
#include "hosts.h"

// Whether this processor computes such products.
bool multiplies_nbits();
// What is wrong with one random product; empty: nothing.
std::string run_nbits(Dice& dice, Host& host);
