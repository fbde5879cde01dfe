"""Layer norm and RMS norm over the last axis with modulation, their tangents and the backward of both."""
