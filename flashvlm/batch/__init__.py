"""Many questions on many videos: rows in, one record per row out, and nothing done twice.

`rows` reads what is asked, `plan` groups it by video; `here`, `cluster` and `elsewhere` answer it, `records` keeps the
answers.
"""
