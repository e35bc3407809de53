"""Policies: constraints in words become thresholds that keep them, and thresholds become actions with reasons.

``specs`` is what a policy team writes, ``compile`` finds the thresholds or says that there are none, ``compiled`` decides (numpy
and the standard library alone: the runtime loads it), ``outcome`` says what a compiled policy does to a table of predictions, and
``replay`` sets two side by side.
"""
