// How much slower the kernels are where numbers are denormal.
#pragma once

// Prints a line for each shape; returns the exit status.
int time_denormals();
