"""The README section, the page and the pictures of every measured device, made from ``bench/results``."""
