"""The demo: a small world of clips and questions, and the training of the checkpoint that knows it."""
