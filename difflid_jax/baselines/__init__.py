"""Other methods, with their authors' weights where there are any."""
