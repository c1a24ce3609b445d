"""From a model to a student folder: the build, trained exits, and the default student."""
