"""Images: strict reading for data sets, photographs with their metadata, kinds of arrays, contact sheets."""
