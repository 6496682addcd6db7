"""The plan of a search, which is written before training starts, and the expected cost.

Called by the driver of a search, by previews, by trainings and by the publishers.
"""
