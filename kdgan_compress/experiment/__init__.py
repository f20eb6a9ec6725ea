"""One experiment: recipe, checkpoint, run folder, and the runner that takes a recipe to a finished run folder."""
