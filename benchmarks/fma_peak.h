/// The roof of one core: independent chains of fused multiply-adds.
#pragma once

namespace pagegrad {

/// GFLOP/s of float32 multiply-adds in the widest registers of this machine; best of some short
/// runs. Clocks drift, so measure it next to what is compared with it.
double fma_peak_gflops();

}  // namespace pagegrad
