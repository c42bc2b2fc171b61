"""The page of `thinbox report`: records of other people in, one self-contained HTML file out."""
