"""What can be trained: each module turns an experiment into a task of `training.runner`."""
