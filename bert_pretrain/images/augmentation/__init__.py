"""Random views of images: rules, what is drawn by them, and the operations that follow."""
