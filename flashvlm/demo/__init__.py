"""The demo: a small world of clips and questions, and the training of the checkpoints that know it."""
