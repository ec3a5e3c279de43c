"""The `flashvlm` command: reads arguments, calls the library, prints. It computes nothing."""
