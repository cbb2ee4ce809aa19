"""The CPU's step as one native call: our kernels in C++, built once, called through ctypes."""
