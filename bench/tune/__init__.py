"""The tuner of the attention kernels."""
