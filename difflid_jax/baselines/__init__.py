"""Other methods of dehazing and low-light enhancement, with their authors' weights."""
