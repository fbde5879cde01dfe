"""The gated residual, alone and with the norm that follows it: tangents and the backward of both."""
