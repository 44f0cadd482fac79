"""Prompt -> answer.

settings.py      `AnswerSettings`: what a caller can choose
request.py       `Request`: what is known of one prompt on its way to an answer
pipeline.py      `Pipeline`: the steps of a request, in their order
full_attention.py  the same where no KV is kept; steps.py: what both have in common
preparation.py   prompt -> tokens, with the chunks in them whose KV is known
scheduler.py     `Scheduler`: requests that share passes of the model
passes.py        which rows of which requests the next pass computes
serving_loop.py  `ServingLoop`: the thread in which a scheduler runs
alone.py         one request at a time, in the caller's thread
rendering.py     the prompt's text, in which chunks can't spell control tokens
known_chunks.py  which known chunks a text contains
known_starts.py  what prompts begin with as earlier ones do; prefix_tree.py keeps it
adhoc.py         chunks that come with a question: which are worth keeping
loading.py       the KV of a prompt's chunks
text_stream.py   tokens to text; detokenizer.py: text that no later token changes
stops.py         stop strings in a text that comes in pieces
usage.py         what a request cost; timing.py measures it
answer/          what a request returns
"""
