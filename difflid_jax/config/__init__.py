"""From a ConfigDict to one frozen experiment."""
