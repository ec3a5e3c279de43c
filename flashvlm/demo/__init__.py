"""The demo: a small world of clips and questions, and the checkpoints that know it."""
