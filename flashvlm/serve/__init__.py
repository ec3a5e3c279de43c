"""A server: the model is loaded once and answers everybody, in OpenAI's protocol, with a budget for each request.

`run.serve` starts it. What it needs besides flashvlm is the extra `flashvlm[serve]`.
"""
