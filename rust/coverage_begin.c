// SPDX-License-Identifier: GPL-2.0
/* The beginning of the counters of a coverage build; see rust/coverage.c. */

#include "helpers.h"

u64 rdax_coverage_begin __section("__llvm_prf_cnts");
