"""Which way do the stripes go? An experiment of one's own on linear_lab."""
