"""What can be learnt.

Rows, a way to make a model and plain values enter; a `Task` leaves (`interface`): what is trained,
what is watched, what is exported.
"""
