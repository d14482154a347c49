"""Where things are in a model: layers, taps, wiring."""
