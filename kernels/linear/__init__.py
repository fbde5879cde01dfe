"""The linear layer, its tangents and the backward of both."""
