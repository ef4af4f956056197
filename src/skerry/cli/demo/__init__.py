"""`skerry demo`: the whole way of a model on one machine, with real programs and nothing made up.

Lives here: the story (`story`, `update`) and what its chapters share (`stage`), the programs it starts (`programs`),
what it measured (`report`), and a line that can be cut (`proxy`). It drives the same commands and API as everybody;
every figure it prints was measured in that run.
"""
