"""Language models: draft cheaply, verify in one pass, keep exactly what the model would have said.

`engine` runs it, `drafters` guess, `acceptance` decides what stays, `policy` decides how far to guess from measured
costs, `confidence` turns a drafter's confidence into a probability, `calibrate` learns all of it once, `replay` scores a
policy on a recorded run.
"""
