"""An attack on the decoder with damaged files: `python -m tests.attack --seconds 600`.

The n-th file of a seed is always the same. It is read in a worker process, in both ways of seeking, and its frames are
read again. A file may be read or refused with a `VideoError`; anything else is a finding.
"""
