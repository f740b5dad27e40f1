"""The shipped configs: per stage one for the shapes world, and the real recipes."""
