#pragma once
#include "limits.hpp"

/// One function per subject; each measures its figures once per pair and reports them.
namespace bench {

void decode_cases(Limits& limits);
void prefill_cases(Limits& limits);
void shape_cases(Limits& limits);
void shared_cases(Limits& limits);
void shifted_cases(Limits& limits);
void option_cases(Limits& limits);
void token_count_cases(Limits& limits);
void mixed_cases(Limits& limits);
void interrupted_cases(Limits& limits);
void bookkeeping_cases();
void encoder_cases(Limits& limits);
void recurrent_cases(Limits& limits);
void lightning_cases(Limits& limits);
void rows_cases(Limits& limits);
void operator_cases();
void storage_cases(Limits& limits);
void wrapper_cases(Limits& limits);

}  // namespace bench
