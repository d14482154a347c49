"""Reading the units of a model: on the training's own passes, or in a pass apart from it."""
