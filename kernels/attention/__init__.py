"""Softmax attention, its tangents and the backward of both."""
